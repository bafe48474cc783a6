//! Requests: redirects that leave the token behind, pauses and second tries, and errors in words.

use std::io::Read;
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, Body, SendBody};

use crate::error::{HubError, Result};
use crate::settings::Settings;
use crate::token::Token;
use crate::url;

/// Tries after the first one.
const RETRIES: u32 = 5;
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// The longest pause that a rate limit may impose before it becomes an error.
const LONGEST_WAIT: u64 = 300;
const MOST_REDIRECTS: usize = 10;
/// Errors are short; whoever sends more is no hub.
const LONGEST_MESSAGE: u64 = 64 * 1024;
/// A large commit takes the hub a while.
const ANSWER_TIME: Duration = Duration::from_secs(600);

/// A connection to one hub.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    origin: Option<String>,
    pub endpoint: String,
    token: Option<Token>,
    offline: Option<&'static str>,
    pause: Duration,
}

/// What is sent.
pub(crate) enum Payload<'a> {
    Nothing,
    Bytes(&'static str, &'a [u8]),
    /// So many bytes from a reader that is made anew for every try.
    Stream(u64, &'a dyn Fn() -> Result<Box<dyn Read + 'a>>),
}

/// A request, and when it may be sent a second time.
pub(crate) struct Request<'a> {
    pub method: Method,
    pub url: String,
    pub headers: Vec<(&'a str, String)>,
    pub payload: Payload<'a>,
    /// Sending it twice does not do it twice.
    pub repeatable: bool,
    /// The address says by itself who may: no token.
    pub anonymous: bool,
    /// For messages: `downloading x`.
    pub action: String,
}

impl<'a> Request<'a> {
    pub fn get(url: String, action: impl Into<String>) -> Request<'a> {
        let (headers, payload) = (Vec::new(), Payload::Nothing);
        let (repeatable, anonymous, action) = (true, false, action.into());
        Request { method: Method::GET, url, headers, payload, repeatable, anonymous, action }
    }

    /// Sent once, unless `repeatable` is set.
    pub fn post(url: String, json: &'a [u8], action: impl Into<String>) -> Request<'a> {
        let payload = Payload::Bytes("application/json", json);
        Request { method: Method::POST, payload, repeatable: false, ..Request::get(url, action) }
    }
}

impl Client {
    pub fn new(settings: &Settings) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("loratune/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(settings.timeout))
            .timeout_connect(Some(settings.timeout))
            .timeout_per_read(Some(settings.timeout))
            .timeout_per_write(Some(settings.timeout))
            .timeout_recv_response(Some(settings.timeout))
            .max_idle_connections_per_host(settings.parallel)
            .tls_config(TlsConfig::builder().root_certs(roots()).build())
            .build();
        Client {
            agent: config.into(),
            origin: url::origin(&settings.endpoint),
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            offline: settings.offline,
            pause: settings.pause,
        }
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends a request until there is an answer that is neither a redirect nor worth another try.
    ///
    /// # Errors
    /// When there is none. Answers of 400 and above are returned as they are.
    pub fn send(&self, request: &Request<'_>) -> Result<Response<Body>> {
        if let Some(by) = self.offline {
            return Err(HubError::OfflineWrite { action: request.action.clone(), by });
        }
        let mut pause = self.pause;
        for tried in 0.. {
            let last = tried == RETRIES;
            match self.follow(request) {
                Ok(answer) => match wait_for(answer.status(), answer.headers(), request.repeatable) {
                    None => return Ok(answer),
                    Some(_) if last => return Ok(answer),
                    Some(Some(seconds)) if seconds > LONGEST_WAIT => {
                        let (action, had_token) = (request.action.clone(), self.has_token());
                        return Err(HubError::RateLimited { action, seconds, had_token });
                    }
                    // A pause in a test's milliseconds is not made longer by whole seconds of zero.
                    Some(seconds) => std::thread::sleep(seconds.map_or(pause, Duration::from_secs)),
                },
                Err(Failure::Fatal(e)) => return Err(e),
                // A host that is not there will hardly come; a name that was meant as a path should fail soon.
                Err(Failure::Broken(e))
                    if last || (never_sent(&e) && tried > 0) || !(request.repeatable || never_sent(&e)) =>
                {
                    return Err(self.unreachable(&request.action, &request.url, &e));
                }
                Err(Failure::Broken(_)) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("the loop ends by returning")
    }

    /// As [`Client::send`]; an answer that is no success is an error, which `explain` may make a better one.
    ///
    /// # Errors
    /// As [`Client::send`], and answers of 400 and above.
    pub fn ask(
        &self,
        request: &Request<'_>,
        explain: impl FnOnce(&Refusal) -> Option<HubError>,
    ) -> Result<Response<Body>> {
        let answer = self.send(request)?;
        if answer.status().is_success() || answer.status().is_redirection() {
            return Ok(answer);
        }
        let refusal = self.refusal(answer);
        Err(explain(&refusal).unwrap_or_else(|| self.refused(&request.action, refusal)))
    }

    /// What an answer that is no success says.
    pub fn refusal(&self, answer: Response<Body>) -> Refusal {
        let header = |name: &str| answer.headers().get(name)?.to_str().ok().map(str::to_string);
        let (status, code) = (answer.status().as_u16(), header("x-error-code").unwrap_or_default());
        let told = header("x-error-message");
        let is_html = header("content-type").is_some_and(|t| t.contains("html"));
        let mut text = String::new();
        let _ = answer.into_body().into_reader().take(LONGEST_MESSAGE).read_to_string(&mut text);
        let in_json = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|json| {
            let error = json.get("error").or_else(|| json.get("message"))?;
            Some(error.as_str().map_or_else(|| error.to_string(), str::to_string))
        });
        let plain = || (!is_html && !text.trim_start().starts_with('<')).then(|| text.clone());
        let message = told.or(in_json).or_else(plain).unwrap_or_default();
        let message: String = message.split_whitespace().collect::<Vec<_>>().join(" ");
        let message = message.chars().take(400).collect::<String>();
        let message = self.token.as_ref().map_or(message.clone(), |t| t.hide_in(&message));
        Refusal { status, code, message: message.trim_end_matches('.').to_string() }
    }

    /// The error of an answer that needs no better words.
    pub fn refused(&self, action: &str, refusal: Refusal) -> HubError {
        let (action, had_token) = (action.to_string(), self.has_token());
        let Refusal { status, message, .. } = refusal;
        match status {
            401 | 403 => HubError::Refused { action, status, message, had_token },
            _ => HubError::Status { action, status, message },
        }
    }

    pub fn unreachable(&self, action: &str, url: &str, e: &ureq::Error) -> HubError {
        // Messages of the layers below name addresses, which may have signatures in them.
        let what = match e {
            ureq::Error::Io(e) => e.to_string(),
            ureq::Error::Timeout(_) => "it does not answer in time".into(),
            ureq::Error::HostNotFound => "there is no such host".into(),
            ureq::Error::Rustls(e) => format!("TLS: {e}"),
            ureq::Error::ConnectProxyFailed(_) => "the proxy refused".into(),
            ureq::Error::Protocol(_) => "it does not speak HTTP".into(),
            other => other.to_string().split("http").next().unwrap_or_default().trim_end().to_string(),
        };
        HubError::Unreachable { action: action.to_string(), host: url::host(url), what }
    }

    fn follow(&self, request: &Request<'_>) -> Result<Response<Body>, Failure> {
        let mut url = request.url.clone();
        for _ in 0..MOST_REDIRECTS {
            let answer = self.once(request, &url)?;
            let status = answer.status();
            let is_read = request.method == Method::GET || request.method == Method::HEAD;
            let keeps_method =
                matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
            if !(status.is_redirection() && status != StatusCode::NOT_MODIFIED) {
                return Ok(answer);
            }
            let location = answer.headers().get("location").and_then(|l| l.to_str().ok());
            let next = location.and_then(|l| url::join(&url, l)).ok_or_else(|| {
                Failure::Fatal(HubError::answer(
                    &url,
                    format!("it answers {status} without a usable Location"),
                ))
            })?;
            if request.method == Method::HEAD && url::origin(&next) != url::origin(&url) {
                // The hub says on the redirect what the file is; where it leads to, nobody knows.
                return Ok(answer);
            }
            // What is sent is sent to the hub only; a renamed repository is on the same host.
            let is_kept = keeps_method && url::origin(&next) == url::origin(&url);
            if !(is_read || is_kept) {
                let what = format!("it sends a {} on to another place", request.method);
                return Err(Failure::Fatal(HubError::answer(&url, what)));
            }
            if url::origin(&url).is_some_and(|o| o.starts_with("https:")) && !next.starts_with("https:") {
                let what = "it leads from https to http".to_string();
                return Err(Failure::Fatal(HubError::answer(&url, what)));
            }
            url = next;
        }
        Err(Failure::Fatal(HubError::answer(&request.url, format!("more than {MOST_REDIRECTS} redirects"))))
    }

    /// One request to one place. The token goes to the hub's own origin and to nobody else.
    fn once(&self, request: &Request<'_>, url: &str) -> Result<Response<Body>, Failure> {
        let mut builder = ureq::http::Request::builder().method(request.method.clone()).uri(url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        let at_home = url::origin(url).is_some() && url::origin(url) == self.origin;
        if let (Some(token), true) = (&self.token, at_home && !request.anonymous) {
            builder = builder.header("authorization", token.header());
        }
        let bad = |_| Failure::Fatal(HubError::answer(url, "its address cannot be used"));
        match &request.payload {
            Payload::Nothing => self.run(builder.body(()).map_err(bad)?),
            Payload::Bytes(kind, bytes) => {
                self.run(builder.header("content-type", *kind).body(*bytes).map_err(bad)?)
            }
            Payload::Stream(len, open) => {
                let mut reader = open().map_err(Failure::Fatal)?.take(*len);
                let body = SendBody::from_reader(&mut reader);
                self.run(builder.header("content-length", len.to_string()).body(body).map_err(bad)?)
            }
        }
    }

    fn run(&self, request: ureq::http::Request<impl AsSendBody>) -> Result<Response<Body>, Failure> {
        // The hub thinks about what it is sent; about what it is asked it should not for long.
        let patient = request.method() == Method::POST || request.method() == Method::PUT;
        let request = self.agent.configure_request(request);
        let request = match patient {
            true => {
                request.timeout_recv_response(Some(ANSWER_TIME)).timeout_per_read(Some(ANSWER_TIME)).build()
            }
            false => request.build(),
        };
        self.agent.run(request).map_err(Failure::Broken)
    }
}

/// Why there is no answer.
enum Failure {
    /// Another try changes nothing.
    Fatal(HubError),
    Broken(ureq::Error),
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub status: u16,
    /// The hub's `X-Error-Code`: `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`, `GatedRepo`.
    pub code: String,
    pub message: String,
}

/// Whether an answer asks for another try, and after how many seconds if it says.
fn wait_for(status: StatusCode, headers: &HeaderMap, repeatable: bool) -> Option<Option<u64>> {
    let again = match status.as_u16() {
        429 => true,
        408 | 500 | 502 | 503 | 504 => repeatable,
        _ => false,
    };
    again.then(|| {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let after = text("retry-after").and_then(|v| v.trim().parse::<u64>().ok());
        // The draft standard that the hub follows: `"api";r=0;t=55`, with t the seconds until the window ends.
        let window = text("ratelimit").and_then(|v| {
            let field = |name: &str| {
                v.split(';').find_map(|p| p.trim().strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            field("t=").filter(|_| field("r=") == Some(0))
        });
        after.or(window)
    })
}

/// The request never left this machine, so that another try cannot do it twice.
fn never_sent(e: &ureq::Error) -> bool {
    match e {
        ureq::Error::HostNotFound | ureq::Error::ConnectProxyFailed(_) => true,
        ureq::Error::Timeout(t) => matches!(t, ureq::Timeout::Connect | ureq::Timeout::Resolve),
        ureq::Error::Io(e) => e.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

/// The machine's own certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR` count), so that a company's are trusted; Mozilla's
/// where the machine has none.
fn roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    let own: Vec<Certificate<'static>> =
        found.iter().map(|c| Certificate::from_der(c.as_ref()).to_owned()).collect();
    RootCerts::new_with_certs(&own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_limits_say_how_long_to_wait() {
        let wait = |status: u16, name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            wait_for(StatusCode::from_u16(status).unwrap(), &headers, false)
        };
        assert_eq!(wait(429, "retry-after", "7"), Some(Some(7)));
        assert_eq!(wait(429, "ratelimit", "\"api\";r=0;t=55"), Some(Some(55)));
        assert_eq!(wait(429, "ratelimit", "\"api\";r=3;t=55"), Some(None));
        assert_eq!(wait(500, "retry-after", "7"), None);
        assert_eq!(wait(404, "retry-after", "7"), None);
    }
}
