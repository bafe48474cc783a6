//! Downloads into the cache: several files at a time, each resumed where it broke off and checked when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ureq::Body;
use ureq::http::{Response, StatusCode};

use crate::cache::{RepoCache, beside, make_dir};
use crate::digest::{CHUNK, Check, read_through};
use crate::error::{HubError, Result};
use crate::http::{Client, Request};
use crate::listing::{Content, Listing, Remote, explain, file_url, head};
use crate::name::{Kind, RepoName};
use crate::progress::Progress;

/// Tries of one file after which nothing new has arrived.
const RETRIES: u32 = 5;

/// Downloads of one repository at one commit.
pub(crate) struct Downloads<'a> {
    pub client: &'a Client,
    pub progress: &'a dyn Progress,
    pub cache: &'a RepoCache,
    pub kind: Kind,
    pub name: &'a RepoName,
    pub commit: &'a str,
    pub parallel: usize,
    pub pause: std::time::Duration,
}

/// One file that is missing.
struct Job<'a> {
    file: &'a str,
    content: Content,
}

impl Downloads<'_> {
    /// Sees to it that files lie in the snapshot. Returns their paths, in order.
    ///
    /// # Errors
    /// The first thing that goes wrong; what has arrived until then stays for the next time.
    pub fn fetch(&self, listing: &Listing, files: &[String]) -> Result<Vec<PathBuf>> {
        let snapshot = self.cache.snapshot(self.commit);
        let mut jobs = Vec::new();
        for file in files.iter().filter(|f| !snapshot.join(f).is_file()) {
            let remote = listing.find(file).ok_or_else(|| HubError::NoFile {
                kind: self.kind,
                repo: self.name.id.clone(),
                revision: self.name.revision().to_string(),
                file: file.clone(),
            })?;
            let content = self.content(remote)?;
            // What another revision has, too, is there already.
            if self.cache.blob(&content.etag).is_file() {
                self.cache.link(&content.etag, self.commit, file)?;
            } else {
                jobs.push(Job { file, content });
            }
        }
        if !jobs.is_empty() {
            let bytes = jobs.iter().map(|j| j.content.size).sum();
            self.progress.begin(&self.name.to_string(), jobs.len(), bytes);
            let done = self.run(&jobs);
            self.progress.end();
            done?;
        }
        Ok(files.iter().map(|f| snapshot.join(f)).collect())
    }

    fn content(&self, remote: &Remote) -> Result<Content> {
        match &remote.content {
            Some(content) => Ok(content.clone()),
            None => head(self.client, self.kind, self.name, self.commit, &remote.path),
        }
    }

    /// Several at a time; the first error ends the others at their next chunk.
    fn run(&self, jobs: &[Job<'_>]) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let first_error = Mutex::new(None);
        let work = || {
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let stop = || failed.load(Ordering::Relaxed) || self.progress.stop_requested();
                if let Err(e) = self.file(job, &stop) {
                    // Noted before the others are told, so that their being stopped is not taken for the cause.
                    first_error.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(e);
                    failed.store(true, Ordering::Relaxed);
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.parallel.min(jobs.len()) {
                scope.spawn(work);
            }
            work();
        });
        first_error.into_inner().unwrap_or_else(|p| p.into_inner()).map_or(Ok(()), Err)
    }

    fn file(&self, job: &Job<'_>, stop: &dyn Fn() -> bool) -> Result<()> {
        let etag = &job.content.etag;
        let blob = self.cache.blob(etag);
        make_dir(blob.parent().unwrap_or(&blob))?;
        let waiting = || {
            self.progress.note(&format!("another process is downloading {}; waiting for it", job.file));
        };
        let lock = self.cache.lock(etag, waiting)?;
        if blob.is_file() {
            // It arrived while the lock was waited for.
            self.progress.advance(job.content.size as i64);
        } else {
            // Without locks nobody may write to a file that another process might, too.
            let partial = match &lock {
                Some(_) => blob.with_file_name(format!("{etag}.incomplete")),
                None => beside(&blob, "incomplete"),
            };
            self.blob(job, &partial, stop)?;
            fs::rename(&partial, &blob).map_err(HubError::io("write", &blob))?;
        }
        self.cache.link(etag, self.commit, job.file)?;
        Ok(())
    }

    /// A whole file with the right checksum at `partial`. One that is damaged is downloaded once more from its beginning.
    fn blob(&self, job: &Job<'_>, partial: &Path, stop: &dyn Fn() -> bool) -> Result<()> {
        let Content { etag, size } = &job.content;
        for attempt in 0..2 {
            let check = self.transfer(job, partial, stop)?;
            let algorithm = check.name();
            match check.finish() {
                Some(found) if !found.eq_ignore_ascii_case(etag) => {
                    fs::remove_file(partial).map_err(HubError::io("remove", partial))?;
                    self.progress.advance(-(*size as i64));
                    if attempt == 1 {
                        return Err(HubError::Checksum {
                            repo: self.name.to_string(),
                            file: job.file.to_string(),
                            algorithm,
                            expected: etag.clone(),
                            found,
                        });
                    }
                    self.progress.note(&format!("{} arrived damaged; downloading it again", job.file));
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Fills `partial` up to the file's size, as often as the connection breaks.
    fn transfer(&self, job: &Job<'_>, partial: &Path, stop: &dyn Fn() -> bool) -> Result<Check> {
        let size = job.content.size;
        let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).clone();
        let mut out = options.open(partial).map_err(HubError::io("write", partial))?;
        let check = Check::new(&job.content.etag, size);
        let mut sink = Sink { content: &job.content, check, written: 0, partial };
        let there = out.metadata().map_err(HubError::io("read", partial))?.len();
        if there > size {
            sink.restart(&mut out, self.progress)?;
        } else if there > 0 {
            read_through(partial, |bytes| sink.check.update(bytes))?;
            sink.written = there;
            self.progress.advance(there as i64);
            out.seek(SeekFrom::End(0)).map_err(HubError::io("write", partial))?;
        }
        let mut fruitless = 0;
        while sink.written < size {
            let before = sink.written;
            match self.stream(job, &mut out, &mut sink, stop) {
                Ok(()) if sink.written >= size => break,
                Ok(()) | Err(HubError::Unreachable { .. }) if fruitless < RETRIES => {}
                Ok(()) => {
                    let url = file_url(self.client, self.kind, &self.name.id, self.commit, job.file);
                    let what = format!("{} ends after {} of {size} bytes", job.file, sink.written);
                    return Err(HubError::answer(&url, what));
                }
                Err(e) => return Err(e),
            }
            fruitless = if sink.written > before { 0 } else { fruitless + 1 };
            std::thread::sleep(self.pause);
        }
        out.sync_all().map_err(HubError::io("write", partial))?;
        Ok(sink.check)
    }

    /// One answer of the hub, as far as it goes.
    fn stream(
        &self,
        job: &Job<'_>,
        out: &mut File,
        sink: &mut Sink<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let address = file_url(self.client, self.kind, &self.name.id, self.commit, job.file);
        let action = format!("downloading {} of `{}`", job.file, self.name.id);
        let mut request = Request::get(address.clone(), action.clone());
        // Anything but the bytes as they are would break resuming and the checksum.
        request.headers.push(("accept-encoding", "identity".into()));
        if sink.written > 0 {
            request.headers.push(("range", format!("bytes={}-", sink.written)));
        }
        let answer = self.client.send(&request)?;
        let status = answer.status();
        let goes_on = status == StatusCode::PARTIAL_CONTENT && range_start(&answer) == Some(sink.written);
        let begins = status == StatusCode::OK;
        if sink.written > 0
            && !goes_on
            && (status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE)
        {
            // The server knows no ranges, or has less than what is here: from the beginning.
            sink.restart(out, self.progress)?;
            if !begins {
                return Ok(());
            }
        }
        if !status.is_success() {
            let refusal = self.client.refusal(answer);
            let known = explain(self.client, &refusal, self.kind, self.name, Some(job.file));
            return Err(known.unwrap_or_else(|| self.client.refused(&action, refusal)));
        }
        if !(begins || goes_on) {
            return Err(HubError::answer(&address, format!("it answers {status} instead of the file")));
        }
        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            if stop() {
                return Err(HubError::Stopped);
            }
            match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => sink.take(out, &buffer[..n], self.progress)?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.client.unreachable(&action, &address, &ureq::Error::from(e))),
            }
        }
    }
}

fn range_start(answer: &Response<Body>) -> Option<u64> {
    let range = answer.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// What has arrived of a file.
struct Sink<'a> {
    content: &'a Content,
    check: Check,
    written: u64,
    partial: &'a Path,
}

impl Sink<'_> {
    /// Takes what arrived. What goes beyond the size is not kept, but counts for the checksum, which it makes wrong.
    fn take(&mut self, out: &mut File, bytes: &[u8], progress: &dyn Progress) -> Result<()> {
        self.check.update(bytes);
        let room = self.content.size.saturating_sub(self.written);
        let kept = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        out.write_all(kept).map_err(HubError::io("write", self.partial))?;
        self.written += kept.len() as u64;
        progress.advance(kept.len() as i64);
        Ok(())
    }

    /// Forgets everything that has arrived.
    fn restart(&mut self, out: &mut File, progress: &dyn Progress) -> Result<()> {
        out.set_len(0).map_err(HubError::io("write", self.partial))?;
        out.seek(SeekFrom::Start(0)).map_err(HubError::io("write", self.partial))?;
        progress.advance(-(self.written as i64));
        self.check = Check::new(&self.content.etag, self.content.size);
        self.written = 0;
        Ok(())
    }
}
