//! The repository that is pushed to.

use serde_json::{Value, json};

use super::Push;
use crate::error::{HubError, Result};
use crate::http::{Client, Request};
use crate::hub::Hub;
use crate::listing::explain;
use crate::name::{Kind, MAIN, RepoName, check_id};
use crate::url;

/// How often to wait for another repository that is being made at the same time.
const CONFLICTS: u32 = 5;

impl Hub {
    /// Whose token it is.
    ///
    /// # Errors
    /// Without a token, or when the hub does not know it.
    pub fn user(&self) -> Result<String> {
        let client = self.client();
        let action = "asking whose token it is".to_string();
        need_token(client, &action)?;
        let address = format!("{}/api/whoami-v2", client.endpoint);
        let answer = client.ask(&Request::get(address.clone(), action), |_| None)?;
        let told = json_of(answer, &address)?;
        let name = told.get("name").and_then(Value::as_str).filter(|n| check_id(n).is_ok());
        name.map(str::to_string).ok_or_else(|| HubError::answer(&address, "it names no user"))
    }

    /// The id of a repository to push to: a name without an owner belongs to the token's.
    ///
    /// # Errors
    /// When the hub's rules forbid the name, or the owner has to be asked for and cannot be.
    pub fn full_id(&self, name: &str) -> Result<String> {
        let bad = |why: &str| HubError::Name { name: name.to_string(), why: why.to_string() };
        check_id(name).map_err(bad)?;
        if name.contains('/') { Ok(name.to_string()) } else { Ok(format!("{}/{name}", self.user()?)) }
    }
}

pub(super) fn need_token(client: &Client, action: &str) -> Result<()> {
    match client.has_token() {
        true => Ok(()),
        false => Err(HubError::NoToken { action: action.to_string(), endpoint: client.endpoint.clone() }),
    }
}

/// Makes the repository and the branch, if they are missing. Returns whether it is private, if the hub says so.
pub(super) fn ensure(hub: &Hub, push: &Push) -> Result<Option<bool>> {
    let client = hub.client();
    let action = format!("pushing to `{}`", push.repo);
    need_token(client, &action)?;
    let is_new = create(hub, push)?;
    let private = info(client, push, MAIN)?.get("private").and_then(Value::as_bool);
    match private {
        Some(false) if push.private && is_new => {
            let what =
                "was made public although a private repository was asked for; nothing was pushed".into();
            return Err(HubError::Unsuitable { kind: Kind::Model, repo: push.repo.clone(), what });
        }
        Some(false) if push.private => {
            hub.progress().note(&format!("`{}` exists already and is public", push.repo));
        }
        _ => {}
    }
    if let Some(branch) = push.revision.as_deref().filter(|r| *r != MAIN) {
        make_branch(client, push, branch)?;
    }
    Ok(private)
}

/// Whether it was made now.
fn create(hub: &Hub, push: &Push) -> Result<bool> {
    let client = hub.client();
    let (owner, name) = push.repo.split_once('/').unwrap_or(("", &push.repo));
    let body = json!({
        "name": name,
        "organization": (!owner.is_empty()).then_some(owner),
        "type": "model",
        "private": push.private,
    });
    let body = body.to_string();
    let address = format!("{}/api/repos/create", client.endpoint);
    for _ in 0..CONFLICTS {
        let mut request = Request::post(address.clone(), body.as_bytes(), format!("making `{}`", push.repo));
        // Should the first try have made it, the second says that it is there.
        request.repeatable = true;
        let answer = client.send(&request)?;
        if answer.status().is_success() {
            return Ok(true);
        }
        let refusal = client.refusal(answer);
        match refusal.status {
            409 if refusal.message.contains("conflicting operation") => {
                std::thread::sleep(hub.settings().pause);
            }
            409 => return Ok(false),
            // Who may not make repositories may still be allowed to push to one that exists.
            401..=403 if info(client, push, MAIN).is_ok() => return Ok(false),
            _ => return Err(client.refused(&request.action, refusal)),
        }
    }
    let message = "other repositories are being made at the same time".to_string();
    Err(HubError::Status { action: format!("making `{}`", push.repo), status: 409, message })
}

fn make_branch(client: &Client, push: &Push, branch: &str) -> Result<()> {
    let address = format!("{}/api/models/{}/branch/{}", client.endpoint, push.repo, url::segment(branch));
    let mut request =
        Request::post(address, b"{}", format!("making the branch `{branch}` of `{}`", push.repo));
    request.repeatable = true;
    let answer = client.send(&request)?;
    if answer.status().is_success() {
        return Ok(());
    }
    let refusal = client.refusal(answer);
    match refusal.status {
        409 => Ok(()),
        403 if info(client, push, branch).is_ok() => Ok(()),
        _ => Err(client.refused(&request.action, refusal)),
    }
}

/// The commit that the branch is at.
pub(super) fn head(client: &Client, push: &Push) -> Result<String> {
    let revision = push.revision.as_deref().unwrap_or(MAIN);
    let commit = info(client, push, revision)?.get("sha").and_then(Value::as_str).map(str::to_string);
    commit.ok_or_else(|| HubError::answer(&client.endpoint, "it names no commit"))
}

fn info(client: &Client, push: &Push, revision: &str) -> Result<Value> {
    let name = RepoName { id: push.repo.clone(), revision: Some(revision.to_string()), file: None };
    let address = format!("{}/api/models/{}/revision/{}", client.endpoint, name.id, url::segment(revision));
    let request = Request::get(address.clone(), format!("looking up `{}`", push.repo));
    let answer = client.ask(&request, |refusal| explain(client, refusal, Kind::Model, &name, None))?;
    json_of(answer, &address)
}

/// An answer as JSON.
pub(super) fn json_of(answer: ureq::http::Response<ureq::Body>, address: &str) -> Result<Value> {
    let bytes = answer.into_body().with_config().limit(64 << 20).read_to_vec();
    let bytes = bytes.map_err(|_| HubError::answer(address, "its answer broke off"))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| HubError::answer(address, format!("its answer is no JSON: {e}")))
}
