//! GitHub's own command line before the twin: each rule that the driver relies on, with its own sealed boxes.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};
use std::thread;

use keywheel_twins::github::{REPOSITORY, Twin, TwinOptions};
use tempfile::TempDir;

/// The command line, which asks GitHub's own addresses and reaches the twin by a socket.
struct Gh {
    folder: TempDir,
    token: String,
}

impl Gh {
    fn before(twin: &Twin) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("socket");
        forward(UnixListener::bind(&socket)?, twin.base_url().replace("http://", ""));
        let settings = format!("http_unix_socket: {}\n", socket.display());
        std::fs::write(folder.path().join("config.yml"), settings)?;
        Ok(Self { folder, token: twin.token().into() })
    }

    /// Runs a command with this on its standard input; returns what it says, or why it was refused.
    fn run(&self, command: &str, input: &str) -> Result<String, String> {
        let ended = self.ended(command, input).map_err(|error| error.to_string())?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if ended.status.success() { Ok(text(ended.stdout)) } else { Err(text(ended.stderr)) }
    }

    fn ended(&self, command: &str, input: &str) -> io::Result<Output> {
        let mut gh = Command::new("gh");
        gh.args(command.split(' ')).env_clear();
        gh.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        gh.env("GH_CONFIG_DIR", self.folder.path()).env("HOME", self.folder.path());
        gh.env("GH_TOKEN", &self.token).env("GH_NO_UPDATE_NOTIFIER", "1");
        gh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = gh.spawn()?;
        if let Some(mut stdin) = running.stdin.take() {
            // It may be refused before it reads.
            stdin.write_all(input.as_bytes()).ok();
        }
        running.wait_with_output()
    }

    /// Makes sure that a command is refused, in these words.
    fn is_refused(&self, command: &str, input: &str, words: &[&str]) {
        let said = self.run(command, input);
        let fits = |said: &String| words.iter().all(|word| said.contains(word));
        assert!(said.as_ref().is_err_and(fits), "{command}: {said:?}");
    }
}

/// Carries every connection on, until the test ends.
fn forward(socket: UnixListener, twin: String) {
    thread::spawn(move || {
        while let Ok((client, _)) = socket.accept() {
            let Ok(server) = TcpStream::connect(&twin) else { return };
            let (Ok(asks), Ok(asked)) = (client.try_clone(), server.try_clone()) else { return };
            thread::spawn(move || ask(asks, asked));
            thread::spawn(move || answer(server, client));
        }
    });
}

fn ask(mut client: UnixStream, mut server: TcpStream) {
    io::copy(&mut client, &mut server).ok();
}

fn answer(mut server: TcpStream, mut client: UnixStream) {
    io::copy(&mut server, &mut client).ok();
    client.shutdown(Shutdown::Both).ok();
}

fn is_missing() -> bool {
    let asked = Command::new("gh").arg("--version").stdout(Stdio::null()).status();
    let mut out = io::stdout();
    asked.is_err() && writeln!(out, "skipped: gh (not installed)").is_ok()
}

fn at(path: &str) -> String {
    format!("api repos/{REPOSITORY}/{path}")
}

#[test]
fn the_client_of_github_finds_every_rule_of_secrets_kept() {
    if is_missing() {
        return;
    }
    let twin = Twin::start(TwinOptions::default()).unwrap();
    let gh = Gh::before(&twin).unwrap();
    // Its own boxes are opened; a name counts in capitals; a value may have several lines.
    for (place, value) in [("", "kwcanary-one"), (" --env production", "kwcanary-two\nlines")] {
        let secret = |what: &str| format!("secret {what} --repo {REPOSITORY}{place}");
        gh.run(&secret("set provider_key"), value).unwrap();
        gh.run(&secret("set PROVIDER_KEY"), value).unwrap();
        let listed = gh.run(&secret("list"), "").unwrap();
        assert!(listed.starts_with("PROVIDER_KEY\t") && listed.lines().count() == 1, "{listed}");
        for name in ["github_key", "1KEY", "A-KEY"] {
            gh.is_refused(&secret(&format!("set {name}")), "x", &["422", "names can only"]);
        }
        gh.is_refused(&secret("set LONG"), &"x".repeat(48 * 1024 + 1), &["422"]);
        gh.is_refused(&secret("delete ANOTHER"), "", &["404"]);
    }
    assert_eq!(twin.value("PROVIDER_KEY").unwrap(), b"kwcanary-one");
    assert_eq!(twin.value_in_environment("PROVIDER_KEY").unwrap(), b"kwcanary-two\nlines");
    assert_eq!(twin.writes("PROVIDER_KEY"), 2);
    let elsewhere = format!("secret set KEY --repo {REPOSITORY} --env staging");
    gh.is_refused(&elsewhere, "x", &["404"]);
    gh.is_refused("secret set KEY --repo acme/another", "x", &["404"]);
    gh.run(&format!("secret delete PROVIDER_KEY --repo {REPOSITORY}"), "").unwrap();
    assert!(
        twin.value("PROVIDER_KEY").is_none() && twin.value_in_environment("PROVIDER_KEY").is_some()
    );
}

#[test]
fn the_client_of_github_finds_no_value_and_no_box_for_another_key() {
    if is_missing() {
        return;
    }
    let twin = Twin::start(TwinOptions::default()).unwrap();
    let gh = Gh::before(&twin).unwrap();
    (0..40).for_each(|number| twin.set_by_hand(&format!("KEY_{number:02}"), b"kwcanary-value"));
    // What is shown of a secret: its name and two times.
    let keys = format!("{} --jq keys|join(\",\")", at("actions/secrets/key_00"));
    assert_eq!(gh.run(&keys, "").unwrap().trim(), "created_at,name,updated_at");
    // A list has 30 on a page, if not more are asked for.
    let names = format!("{} --jq .secrets[].name", at("actions/secrets"));
    assert_eq!(gh.run(&names, "").unwrap().lines().count(), 30);
    let box_for = |key: &str| {
        format!("{} -X PUT -f encrypted_value=AAAA -f key_id={key}", at("actions/secrets/KEY_00"))
    };
    gh.is_refused(&box_for("1"), "", &["422", "the key is not the current one"]);
    let id = gh.run(&format!("{} --jq .key_id", at("actions/secrets/public-key")), "").unwrap();
    gh.is_refused(&box_for(id.trim()), "", &["422", "cannot be opened"]);
    assert_eq!(twin.value("KEY_00").unwrap(), b"kwcanary-value");
    let asked = |header: &str| format!("{} -H {header}", at("actions/secrets"));
    gh.is_refused(&asked("X-GitHub-Api-Version:1999-01-01"), "", &["400"]);
    gh.is_refused(&asked("Accept:text/html"), "", &["415"]);
    // Who may not, and who is nobody.
    let reader = Twin::start(TwinOptions { read_only: true, ..TwinOptions::default() }).unwrap();
    let set = format!("secret set KEY --repo {REPOSITORY}");
    Gh::before(&reader).unwrap().is_refused(&set, "x", &["403", "Resource not accessible"]);
    let nobody = Gh { token: "github_pat_nobody".into(), ..gh };
    nobody.is_refused(&set, "x", &["401", "Bad credentials"]);
}

#[test]
fn the_client_of_github_finds_secrets_of_an_organisation_where_they_are_seen() {
    if is_missing() {
        return;
    }
    let twin = Twin::start(TwinOptions::default()).unwrap();
    let gh = Gh::before(&twin).unwrap();
    for visibility in ["all", "private"] {
        let set = format!("secret set OF_{visibility} --org acme --visibility {visibility}");
        gh.run(&set, "kwcanary-shared").unwrap();
    }
    assert_eq!(twin.value_of_organisation("OF_ALL").unwrap(), b"kwcanary-shared");
    let listed = gh.run("secret list --org acme", "").unwrap();
    let visibilities = listed.lines().map(|line| line.rsplit_once('\t').unwrap().1);
    assert_eq!(visibilities.collect::<Vec<_>>(), ["ALL", "PRIVATE"]);
    let seen = format!("{} --jq .secrets[].name", at("actions/organization-secrets"));
    assert_eq!(gh.run(&seen, "").unwrap(), "OF_ALL\nOF_PRIVATE\n");
    gh.run("secret delete OF_ALL --org acme", "").unwrap();
    assert_eq!(gh.run(&seen, "").unwrap(), "OF_PRIVATE\n");
    // A page has 100 at most, and says where the next one is.
    (0..120).for_each(|number| twin.share_of_organisation(&format!("SHARED_{number}")));
    assert_eq!(gh.run("secret list --org acme", "").unwrap().lines().count(), 121);
    assert_eq!(gh.run(&format!("{seen} --paginate"), "").unwrap().lines().count(), 121);
    gh.is_refused("secret set KEY --org another --visibility all", "x", &["404"]);
}
