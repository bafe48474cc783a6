//! As much of HTTP/1.1 as the hub's clients need: one request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use super::{Handler, State, What};

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// `hub` or `storage`.
    pub host: &'static str,
    pub method: String,
    /// Decoded, without the query.
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub fn token(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16) -> Answer {
        Answer { status, ..Answer::default() }
    }

    pub fn json(value: serde_json::Value) -> Answer {
        Answer { body: value.to_string().into_bytes(), ..Answer::new(200) }
            .with("content-type", "application/json")
    }

    /// A refusal as the hub writes it.
    pub fn refusal(status: u16, code: &str, message: &str) -> Answer {
        let mut answer = Answer::json(serde_json::json!({"error": message}));
        answer.status = status;
        let answer = if code.is_empty() { answer } else { answer.with("x-error-code", code) };
        answer.with("x-error-message", message)
    }

    pub fn with(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }
}

pub fn converse(stream: TcpStream, host: &'static str, state: &Mutex<State>, handler: Handler) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let Some(asked) = read(&stream, host) else { return };
    let (fault, answer) = {
        let mut state = state.lock().unwrap();
        state.log.push(asked.clone());
        let fault = state.fault(&asked.line());
        // What is refused, or sent elsewhere, is not done.
        let is_done = !matches!(fault, Some(What::Status(..) | What::Redirect(_)));
        let answer = is_done.then(|| handler(&mut state, &asked)).flatten();
        (
            fault,
            answer.unwrap_or_else(|| {
                Answer::refusal(404, "", "Sorry, we can't find the page you are looking for.")
            }),
        )
    };
    let answer = match &fault {
        Some(What::Status(status, headers)) => Answer {
            headers: headers.clone(),
            ..Answer::refusal(
                *status,
                "",
                &format!("fault {status} for {}", asked.token().unwrap_or("nobody")),
            )
        },
        Some(What::Redirect(to)) => Answer::new(307).with("location", to),
        _ => answer,
    };
    if let Some(What::Silence(ms)) = fault {
        std::thread::sleep(Duration::from_millis(ms));
    }
    let _ = write(&stream, &asked, answer, fault.as_ref());
}

fn read(stream: &TcpStream, host: &'static str) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_string(), words.next()?.to_string());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = percent_encoding::percent_decode_str(path).decode_utf8().ok()?.into_owned();
    let mut asked = Asked { host, method, path, query: query.to_string(), ..Asked::default() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        asked.headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
    }
    match asked.header("content-length").and_then(|l| l.parse::<u64>().ok()) {
        Some(len) => {
            reader.take(len).read_to_end(&mut asked.body).ok()?;
        }
        None if asked.header("transfer-encoding").is_some() => loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let len = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut piece = vec![0; len + 2];
            reader.read_exact(&mut piece).ok()?;
            if len == 0 {
                break;
            }
            asked.body.extend_from_slice(&piece[..len]);
        },
        None => {}
    }
    Some(asked)
}

fn write(
    mut stream: &TcpStream,
    asked: &Asked,
    mut answer: Answer,
    fault: Option<&What>,
) -> std::io::Result<()> {
    if answer.status == 200
        && !matches!(fault, Some(What::NoRange))
        && let Some(from) =
            asked.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
    {
        let (from, len): (usize, usize) = (from, answer.body.len());
        if from >= len {
            answer = Answer::new(416);
        } else {
            answer.body.drain(..from);
            answer.status = 206;
            answer = answer.with("content-range", &format!("bytes {from}-{}/{len}", len - 1));
        }
    }
    if let (Some(What::Corrupt), Some(byte)) = (fault, answer.body.last_mut()) {
        *byte ^= 1;
    }
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    stream.write_all(head.as_bytes())?;
    if asked.method == "HEAD" {
        return Ok(());
    }
    let end = match fault {
        Some(What::Drop(n)) => answer.body.len().min(*n),
        _ => answer.body.len(),
    };
    stream.write_all(&answer.body[..end])?;
    stream.flush()
}
