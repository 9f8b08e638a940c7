//! Google's own client of Secret Manager before the twin: what it reads, writes and refuses is what the service's would be.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keywheel_twins::gcp::{ACCOUNT, AUDIENCE, NAME, PROJECT, Twin, TwinOptions, VersionState};

const PROGRAM: &str = r#"
import sys
from google.api_core import exceptions
from google.cloud import secretmanager_v1 as sm
from google.auth.exceptions import RefreshError
from google.oauth2.credentials import Credentials

def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x82f63b78 if crc & 1 else crc >> 1
    return crc ^ 0xffffffff

endpoint, token = sys.stdin.read().split()
client = sm.SecretManagerServiceClient(
    transport="rest", credentials=Credentials(token=token), client_options={"api_endpoint": endpoint})
name = "projects/shop-production/secrets/api-key"

def refused(kind, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")

parent = {"replication": {"automatic": {}}}
client.create_secret(parent="projects/shop-production", secret_id="api-key", secret=parent)
refused(exceptions.Conflict, client.create_secret,
        parent="projects/shop-production", secret_id="api-key", secret=parent)
refused(exceptions.NotFound, client.access_secret_version, name=f"{name}/versions/latest")
def add(data):
    checked = {"data": data, "data_crc32c": crc32c(data)}
    return client.add_secret_version(parent=name, payload=checked).name.split("/")[-1]
assert [add(b"kwcanary-one"), add(b"kwcanary-two"), add(b"kwcanary-two")] == ["1", "2", "3"]
wrong = {"data": b"kwcanary-three", "data_crc32c": 1}
refused(exceptions.BadRequest, client.add_secret_version, parent=name, payload=wrong)
got = client.access_secret_version(name=f"{name}/versions/latest")
assert got.payload.data == b"kwcanary-two" and got.name.endswith("/versions/3")
assert got.payload.data_crc32c == crc32c(b"kwcanary-two")

secret = client.get_secret(name=name)
def moved(etag, version):
    changed = {"name": name, "etag": etag, "version_aliases": {"live": version}}
    return client.update_secret(secret=changed, update_mask={"paths": ["version_aliases"]})
after = moved(secret.etag, 1)
assert dict(after.version_aliases) == {"live": 1} and after.etag != secret.etag
refused(exceptions.BadRequest, moved, secret.etag, 2)
assert client.access_secret_version(name=f"{name}/versions/live").payload.data == b"kwcanary-one"
client.update_secret(secret={"name": name, "annotations": {"team": "shop"}},
                     update_mask={"paths": ["annotations"]})
assert dict(client.get_secret(name=name).annotations) == {"team": "shop"}

newest = [version.name.split("/")[-1] for version in client.list_secret_versions(
    request={"parent": name, "page_size": 2})]
assert newest == ["3", "2", "1"], newest
version = client.get_secret_version(name=f"{name}/versions/2")
client.destroy_secret_version(request={"name": f"{name}/versions/2", "etag": version.etag})
refused(exceptions.BadRequest, client.access_secret_version, name=f"{name}/versions/2")
refused(exceptions.BadRequest, client.enable_secret_version, name=f"{name}/versions/2")
client.disable_secret_version(name=f"{name}/versions/3")
refused(exceptions.BadRequest, client.access_secret_version, name=f"{name}/versions/latest")
asked = ["secretmanager.versions.add", "secretmanager.versions.list"]
granted = client.test_iam_permissions(request={"resource": name, "permissions": asked})
assert list(granted.permissions) == asked
stranger = sm.SecretManagerServiceClient(
    transport="rest", credentials=Credentials(token="kwcanary-no"), client_options={"api_endpoint": endpoint})
# The client takes the 401 as the end of its token.
refused(RefreshError, stranger.get_secret, name=name)
"#;

const SIGNS_IN: &str = r#"
import os
import sys
from google.auth import exceptions, identity_pool
from google.auth.transport.requests import Request

endpoint, subject, account, audience, file = sys.stdin.read().split()
os.environ["GCE_METADATA_HOST"] = endpoint.removeprefix("http://")
from google.auth.compute_engine import _metadata

token, _ = _metadata.get_service_account_token(Request(), service_account="default")
assert token.startswith("ya29.")

def signed_in(source, audience=audience):
    credentials = identity_pool.Credentials.from_info({
        "type": "external_account",
        "audience": audience,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{endpoint}/v1/token",
        "service_account_impersonation_url":
            f"{endpoint}/v1/projects/-/serviceAccounts/{account}:generateAccessToken",
        "credential_source": source,
    }, scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(Request())
    return credentials.token

of_url = {"url": f"{endpoint}/subject", "headers": {"X-Job": "7"},
          "format": {"type": "json", "subject_token_field_name": "value"}}
assert signed_in(of_url) == token
with open(file, "w") as out:
    out.write(subject)
assert signed_in({"file": file}) == token
for wrong in [lambda: signed_in(of_url, "//iam.googleapis.com/another"),
              lambda: signed_in({**of_url, "headers": {}})]:
    try:
        wrong()
    except exceptions.GoogleAuthError:
        continue
    raise AssertionError("it was let in")
"#;

/// Returns the Python that has Google's client, where it is installed.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tools = root.join("target/tools/google/bin");
    tools.join("normalizer").is_file().then(|| tools.join("python3"))
}

/// Runs a program with Google's client, which is told these words.
fn run(python: &Path, program: &str, told: &str) -> std::io::Result<()> {
    let mut command = Command::new(python);
    command.args(["-I", "-c", program]).env_clear().stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(told.as_bytes())?;
    }
    let done = child.wait_with_output()?;
    assert!(done.status.success(), "{NAME} {PROJECT}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

#[test]
fn googles_client_signs_in_by_what_it_is_known_by() {
    let Some(python) = python() else {
        return writeln!(std::io::stdout(), "skipped: Google's client is not installed").unwrap();
    };
    let twin = Twin::start(TwinOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("subject");
    let told = [&*twin.endpoint(), &*twin.subject(), ACCOUNT, AUDIENCE, file.to_str().unwrap()];
    run(&python, SIGNS_IN, &told.join(" ")).unwrap();
}

#[test]
fn googles_client_finds_what_it_expects() {
    let Some(python) = python() else {
        return writeln!(std::io::stdout(), "skipped: Google's client is not installed").unwrap();
    };
    let twin = Twin::start(TwinOptions::default()).unwrap();
    run(&python, PROGRAM, &format!("{} {}", twin.endpoint(), twin.token())).unwrap();
    let states: Vec<_> = twin.versions("api-key").into_iter().map(|(_, state, _)| state).collect();
    assert_eq!(states, [VersionState::Enabled, VersionState::Destroyed, VersionState::Disabled]);
}
