//! A secret whose issuer is the twin of OpenAI.

use keywheel_twins::openai::{KeyState, Twin, TwinOptions};

use super::{Project, Ran};

const CONFIG: &str = r#"
project: shop
policies:
  fast: { cryptoperiod: 90d, soak: 1s, rollback: 1s, watch: 1s }
stores:
  app: { env_file: { path: app.env } }
secrets:
  model:
    policy: fast
    issuer:
      openai:
        project: PROJECT
        admin_key: { file: admin-key }
        base_url: "BASE"
        last_used: { lag: 100ms, granularity: 1s }
        propagation: 0s
        settle_for: 500ms
    stores: { app: MODEL_KEY }
    read_by: nobody
    because: it is read when the image is built
"#;

/// A project whose `MODEL_KEY` is one of the twin's.
pub(super) struct Provider {
    pub(super) project: Project,
    pub(super) twin: Twin,
    pub(super) config: String,
}

impl Provider {
    pub(super) fn new() -> Self {
        let admin_key = "kwcanary-admin-of-the-provider";
        let options = TwinOptions { admin_key: Some(admin_key.into()), ..TwinOptions::default() };
        let twin = Twin::start(options).unwrap();
        let by_hand = twin.make_key("by-hand");
        let project = Project::new();
        let config = CONFIG.replace("PROJECT", twin.project()).replace("BASE", &twin.base_url());
        project.write("keywheel.yaml", &config);
        project.write("app.env", &format!("MODEL_KEY={}\n", by_hand.value));
        project.write("admin-key", admin_key);
        project.write("run.canaries", &by_hand.value);
        Self { project, twin, config }
    }

    /// Has it rotated from end to end once.
    pub(super) fn rotated() -> Self {
        let provider = Self::new();
        let ran = provider.run(&["rotate", "model", "--yes", "--soak"]);
        ran.ends(0).says("completed; v2 is current");
        provider
    }

    /// Runs the program, which prints no value.
    pub(super) fn run(&self, arguments: &[&str]) -> Ran {
        let ran = self.project.run(arguments);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!said.contains("kwcanary") && !said.contains(&self.value()), "{said}");
        ran
    }

    pub(super) fn value(&self) -> String {
        let text = self.project.read("app.env");
        text.lines().find_map(|line| line.strip_prefix("MODEL_KEY=")).unwrap().to_owned()
    }

    /// Returns the key that readers use.
    pub(super) fn current(&self) -> KeyState {
        let mut live: Vec<_> = self.twin.keys().into_iter().filter(|key| key.live).collect();
        live.retain(|key| key.label.ends_with("-1") && key.label.starts_with("kw-"));
        assert_eq!(live.len(), 1, "{live:?}");
        live.remove(0)
    }

    /// Returns the labels of the live keys, in the order in which they were made.
    pub(super) fn live(&self) -> Vec<String> {
        let live = self.twin.keys().into_iter().filter(|key| key.live);
        live.map(|key| key.label).collect()
    }

    /// Adds the values that the program made to those that nothing may hold.
    pub(super) fn note_value(&self) {
        let known = self.project.read("run.canaries");
        self.project.write("run.canaries", &format!("{known}\n{}", self.value()));
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.note_value();
        }
    }
}
