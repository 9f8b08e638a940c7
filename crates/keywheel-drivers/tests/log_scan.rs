//! `log_scan` on what containers of real engines write.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::path::PathBuf;

use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::probe::{Asked, Health};
use keywheel_drivers::{Build, Context, ProbeConfig};
use keywheel_ground::docker::{Docker, IMAGE};
use keywheel_ground::podman::Podman;
use serde_json::json;

/// Writes a refusal to each of its streams.
const REFUSES: &str = "echo 'GET /v1/models 401'; echo 'status=403' >&2; echo ok";

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap())
}

/// A container that ended writes as long as it is not removed, with a terminal of its own and without.
fn counts(run: impl Fn(&[&str]) -> String, socket: PathBuf) {
    for (name, terminal) in [("plain", None), ("terminal", Some("-t"))] {
        let mut arguments = vec!["run", "--name", name, "--network", "none"];
        arguments.extend(terminal);
        arguments.extend([IMAGE, "/bin/busybox", "sh", "-c", REFUSES]);
        // Podman tells whole seconds only.
        let began_at = Timestamp::from_millis(now().millis() / 1_000 * 1_000);
        run(&arguments);
        let asked = Asked { began_at, now: now() };
        let log = json!({ "container": { "name": name, "socket": socket } });
        let probe = json!({ "log_scan": { "log": log, "more_than": 1 } });
        let probe: ProbeConfig = serde_json::from_value(probe).unwrap();
        let probe = probe.build(&Context::at("/")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ask = |asked: Asked| runtime.block_on(probe.ask(&asked));
        let Ok(Health::Red(why)) = ask(asked) else { panic!("{name}: {:?}", ask(asked)) };
        assert!(why.starts_with("2 lines tell of refusals"), "{why}");
        // The same lines before a rotation are what it is compared with.
        let later = asked.now + Span::millis(1);
        let of_before = Asked { began_at: later, now: later + Span::minutes(1) };
        assert_eq!(ask(of_before), Ok(Health::Green));
        run(&["rm", name]);
        assert_eq!(ask(asked), Ok(Health::Green), "what is gone counts as none");
    }
}

#[test]
fn it_counts_what_containers_of_docker_write() {
    match Docker::start() {
        Ok(docker) => counts(|arguments| docker.docker(arguments), docker.socket()),
        Err(why) => println!("skipped: Docker ({why})"),
    }
}

#[test]
fn it_counts_what_containers_of_podman_write() {
    match Podman::start() {
        Ok(podman) => counts(|arguments| podman.podman(arguments), podman.socket()),
        Err(why) => println!("skipped: Podman ({why})"),
    }
}
