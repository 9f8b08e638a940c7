//! Access keys of a user that live in a secret of Secrets Manager, rotated by the whole program before the twin of AWS.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::process::{Command, Stdio};

use keywheel_twins::aws::{Key, Peculiar, Twin, TwinOptions, VersionState};
use keywheel_twins::fault::{Fault, Rule};

const CONFIG: &str = "
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: SOAK, rollback: 1s, watch: 1s, call: 4s }
stores:
  app: { aws_secrets_manager: { region: eu-west-1, secret_id: shop/backend, settle_for: 500ms, ACCESS } }
secrets:
  uploads:
    policy: fast
    issuer: { aws_access_key: { user: backend, usage: nothing, propagation: 1s, settle_for: 500ms, ACCESS } }
    stores: { app: { KEY_ID: access_key_id, KEY_SECRET: secret_access_key } }
    read_by: nobody
    because: it is read when the image is built
";

/// A user whose one key lives in a secret.
struct Shop {
    folder: tempfile::TempDir,
    twin: Twin,
    old: Key,
}

impl Shop {
    fn new() -> Self {
        Self::soaking("1s")
    }

    /// Says how long a version soaks.
    fn soaking(soak: &str) -> Self {
        let twin = Twin::start(TwinOptions::default()).unwrap();
        let old = twin.make_key("backend");
        let (id, secret) = (&old.id, &old.secret);
        let content = format!(
            "{{\n  \"port\": 5432,\n  \"KEY_ID\": \"{id}\",\n  \"KEY_SECRET\": \"{secret}\",\n  \"z\": \"kept\"\n}}\n"
        );
        twin.make_secret("shop/backend", Some(&content), &Peculiar::default());
        let shop = Self { folder: tempfile::tempdir().unwrap(), twin, old };
        for name in ["project", "state", "keys"] {
            let folder = shop.folder.path().join(name);
            std::fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
        }
        let access = format!(
            "endpoint: \"{}\", credentials: {{ access_key_id: {{ file: id }}, secret_access_key: {{ file: admin }} }}",
            shop.twin.endpoint()
        );
        shop.write("keywheel.yaml", &CONFIG.replace("ACCESS", &access).replace("SOAK", soak));
        shop.write("id", &shop.twin.administrator().id);
        shop.write("admin", &shop.twin.administrator().secret);
        shop
    }

    fn write(&self, name: &str, text: &str) {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let path = self.folder.path().join("project").join(name);
        options.open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Runs with nobody to ask, and returns how it ended and what it said.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        command.args(arguments).stdin(Stdio::null());
        command.arg("--config").arg(at("project/keywheel.yaml"));
        command.arg("--journal").arg(at("state/journal.sqlite"));
        command.arg("--kek").arg(at("keys/kek"));
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = format!("{}{}", text(&output.stderr), text(&output.stdout));
        for value in
            [&self.twin.administrator().secret, &self.old.secret, &self.value("KEY_SECRET")]
        {
            assert!(!said.contains(value), "a value was printed: {said}");
        }
        (output.status.code(), said)
    }

    #[track_caller]
    fn ends(&self, arguments: &[&str], code: i32) -> String {
        let (ended, said) = self.run(arguments);
        assert_eq!(ended, Some(code), "{said}");
        said
    }

    fn content(&self) -> String {
        self.twin.content("shop/backend", "AWSCURRENT").unwrap()
    }

    /// Returns what a reader of the secret has under a name.
    fn value(&self, name: &str) -> String {
        let content: serde_json::Value = serde_json::from_str(&self.content()).unwrap();
        content[name].as_str().unwrap().to_owned()
    }

    fn live(&self) -> Vec<String> {
        let keys = self.twin.keys("backend").into_iter().filter(|key| key.live);
        keys.map(|key| key.id).collect()
    }

    /// Returns the labels of each version that has one, the oldest version first.
    fn labels(&self) -> Vec<Vec<String>> {
        let stages = |version: VersionState| version.stages;
        let versions = self.twin.versions("shop/backend").into_iter().map(stages);
        versions.filter(|stages| !stages.is_empty()).collect()
    }

    /// Readers have the one key that is live, and nothing is left that was for the way.
    #[track_caller]
    fn has_one_key(&self, id: &str) {
        assert_eq!((self.value("KEY_ID").as_str(), self.live()), (id, vec![id.to_owned()]));
        assert!(self.labels().iter().flatten().all(|label| label != "AWSPENDING"));
        self.ends(&["doctor"], 0);
        self.ends(&["audit", "verify"], 0);
    }
}

#[test]
fn an_access_key_is_rotated_from_adoption_to_the_proof_of_death() {
    let shop = Shop::new();
    let before = shop.content();
    assert!(shop.ends(&["check"], 0).contains("user `backend` has `AKIA"));
    assert!(shop.ends(&["adopt", "uploads", "--yes"], 0).contains(&shop.old.id));
    let plan = shop.ends(&["plan", "uploads"], 0);
    assert!(plan.contains("suspend") && plan.contains("revoke"), "{plan}");
    let said = shop.ends(&["rotate", "uploads", "--yes", "--soak"], 0);
    assert!(said.contains("completed; v2 is current, v1 is refused everywhere"), "{said}");
    let (id, secret) = (shop.value("KEY_ID"), shop.value("KEY_SECRET"));
    assert_ne!(id, shop.old.id);
    shop.has_one_key(&id);
    let wanted = before.replace(&shop.old.id, &id).replace(&shop.old.secret, &secret);
    assert_eq!(shop.content(), wanted, "every other byte stays");
    assert_eq!(shop.labels(), [["AWSPREVIOUS"], ["AWSCURRENT"]]);
    let seen = shop.twin.faults().seen();
    let at = |operation| seen.iter().position(|seen| seen.operation == Some(operation));
    assert!(at("update_access_key").unwrap() < at("delete_access_key").unwrap());
}

#[test]
fn an_undo_moves_the_label_back_to_the_version_that_readers_had() {
    let shop = Shop::soaking("1h");
    let (before, versions) = (shop.content(), shop.twin.versions("shop/backend"));
    shop.ends(&["adopt", "uploads", "--yes"], 0);
    shop.ends(&["rotate", "uploads", "--yes"], 0);
    assert_ne!(shop.value("KEY_ID"), shop.old.id);
    let said = shop.ends(&["undo", "uploads", "--yes", "--because", "a test"], 0);
    assert!(said.contains("v1 is current again"), "{said}");
    assert_eq!(shop.content(), before);
    assert_eq!(shop.twin.versions("shop/backend")[0], versions[0], "nothing was put");
    assert_eq!(shop.labels(), [["AWSCURRENT"], ["AWSPREVIOUS"]]);
    assert!(shop.live().contains(&shop.old.id));
}

#[test]
fn i23_a_key_that_appeared_while_an_answer_was_lost_is_left_to_a_person() {
    let shop = Shop::new();
    shop.ends(&["adopt", "uploads", "--yes"], 0);
    shop.twin.faults().set(vec![Rule::first("create_access_key", Fault::Cut)]).unwrap();
    let said = shop.ends(&["rotate", "uploads", "--yes", "--soak"], 3);
    assert!(said.contains("a mint's answer was lost"), "{said}");
    assert_eq!(shop.twin.faults().unfired(), []);
    let live = shop.live();
    assert_eq!((live.len(), shop.value("KEY_ID")), (2, shop.old.id.clone()));
    // It is still there after another look, and only its deletion by somebody else lets the rotation go on.
    shop.ends(&["resume", "uploads", "--yes", "--soak"], 3);
    assert_eq!(shop.live(), live);
    shop.twin.end_key(&live[1]);
    shop.ends(&["resume", "uploads", "--yes", "--soak"], 0);
    let id = shop.value("KEY_ID");
    assert!(!live.contains(&id));
    shop.has_one_key(&id);
}
