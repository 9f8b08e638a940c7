//! `pods/exec`: what a program that reads one file writes, a channel for each of its outputs, and one for how it ended.
//!
//! Of the programs of an image there are `cat FILE` and `test -e FILE`, which see the files that are mounted into the container
//! and no others; an image whose name begins with `bare` has none at all.

use axum::body::Body;
use axum::http::Response;
use axum::http::request::Parts;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::objects::Key;
use super::run::Given;
use super::status::Status;
use super::upgrade::{self, Socket};

/// Which container a program is to run in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    /// The pod.
    pub(super) pod: Key,
    /// The container; none for the first one.
    pub(super) container: Option<String>,
    /// Whether the client listens to what the program complains of.
    pub(super) hears_errors: bool,
}

const OUT: u8 = 1;
const ERR: u8 = 2;
const STATUS: u8 = 3;

/// How a program ended.
struct Ended {
    out: Vec<u8>,
    err: String,
    status: Value,
}

/// Takes over the connection of a request, and sends what the program does in a container, if that runs.
pub(super) fn answer(
    parts: Parts,
    inside: &Inside,
    given: Option<&Given>,
    command: &[&str],
) -> Result<Response<Body>, Status> {
    let Some(given) = given else {
        let container = inside.container.as_deref().unwrap_or_default();
        let why = format!("unable to upgrade connection: container not found (\"{container}\")");
        return Err(Status::new(500, "InternalError", why));
    };
    if command.is_empty() {
        return Err(Status::bad_request("you must specify at least 1 command for the container"));
    }
    let mut ended = run(given, command);
    if !inside.hears_errors {
        ended.err.clear();
    }
    upgrade::answer(parts, move |socket| tell(socket, ended))
}

fn run(given: &Given, command: &[&str]) -> Ended {
    let image = given.image.rsplit('/').next().unwrap_or_default();
    match command {
        _ if image.starts_with("bare") => unknown(command),
        ["cat", file] => match given.files.get(*file) {
            Some(content) => ended(content.clone(), String::new(), 0),
            None => {
                let why = format!("cat: can't open '{file}': No such file or directory\n");
                ended(Vec::new(), why, 1)
            }
        },
        ["test", "-e", file] => {
            let is_there = given.files.contains_key(*file);
            ended(Vec::new(), String::new(), i32::from(!is_there))
        }
        _ => unknown(command),
    }
}

fn ended(out: Vec<u8>, err: String, code: i32) -> Ended {
    let status = match code {
        0 => json!({ "metadata": {}, "status": "Success" }),
        code => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
    };
    Ended { out, err, status }
}

fn unknown(command: &[&str]) -> Ended {
    let program = command.first().copied().unwrap_or_default();
    let message = format!(
        "Internal error occurred: error executing command in container: exec: \"{program}\": executable file not found in $PATH"
    );
    let status = json!({
        "metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500,
    });
    Ended { out: Vec::new(), err: String::new(), status }
}

async fn tell(mut socket: Socket, ended: Ended) {
    let frame = |channel: u8, bytes: Vec<u8>| {
        let frame: Vec<u8> = std::iter::once(channel).chain(bytes).collect();
        Message::Binary(frame.into())
    };
    let Ended { out, err, status } = ended;
    let status = status.to_string().into_bytes();
    let outputs = [(OUT, out), (ERR, err.into_bytes())];
    let outputs = outputs.into_iter().filter(|(_, bytes)| !bytes.is_empty());
    for (channel, bytes) in outputs.chain([(STATUS, status)]) {
        // A client that is gone need not hear it.
        if socket.send(frame(channel, bytes)).await.is_err() {
            return;
        }
    }
    socket.send(Message::Close(None)).await.ok();
}
