//! Several secrets at once: one command, and no container more than once for each shared roll.

use super::bad_days::side_by_side;
use super::*;

const SERVICES: &str = r#"
x-service: &service
  image: IMAGE
  network_mode: none
  stop_grace_period: 1s
services:
  backend:
    <<: *service
    env_file: [.env]
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; [ $${#PEPPER} -le 40 ] || exit 7; busybox sleep 1d & wait"]
  mailer:
    <<: *service
    environment: { MAIL_KEY: "${MAIL_KEY}", HOOK_KEY: "${HOOK_KEY}" }
    command: &waits ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; busybox sleep 1d & wait"]
  worker:
    <<: *service
    environment: [MAIL_KEY, QUEUE_KEY]
    command: *waits
"#;

/// Everything in `.env` reaches the backend; worker and mailer are given some of it.
const MONDAY: &str = r#"
project: shop
policies:
  fast: { soak: 1s, rollback: 1s, watch: 1s, cryptoperiod: 90d }
stores:
  app: { env_file: { path: .env } }
workloads:
  backend: { compose_service: { file: docker-compose.yml, service: backend, replicas: 2, program: [COMPOSE], socket: SOCKET, ready_for: 200ms, settle_for: 1s } }
  mailer: { compose_service: { file: docker-compose.yml, service: mailer, start_first: true, program: [COMPOSE], socket: SOCKET, ready_for: 200ms, settle_for: 1s } }
  worker: { compose_service: { file: docker-compose.yml, service: worker, start_first: true, program: [COMPOSE], socket: SOCKET, ready_for: 200ms, settle_for: 1s } }
secrets:
  hook: { policy: fast, issuer: { random: { length: 32 } }, stores: { app: HOOK_KEY }, read_by: [backend, mailer] }
  jwt:
    policy: fast
    issuer: { jwt_secret: { bytes: 32 } }
    strategy: { keyring: { longest_token: 1s, skew: 0s } }
    stores: { app: { JWT_SECRET: current, JWT_SECRET_ALSO_ACCEPTED: also_accepted } }
    read_by: [backend]
  mail: { policy: fast, issuer: { random: { length: 32 } }, stores: { app: MAIL_KEY }, read_by: [backend, mailer, worker] }
  pepper: { policy: fast, issuer: { random: { length: LENGTH } }, stores: { app: PEPPER }, read_by: [backend] }
  queue: { policy: fast, issuer: { random: { length: 32 } }, stores: { app: QUEUE_KEY }, read_by: [worker, backend] }
  session: { policy: fast, issuer: { random: { length: 32 } }, stores: { app: SESSION_KEY }, read_by: [backend] }
"#;

const ENV: &str = "HOOK_KEY=kwcanary-hook
JWT_SECRET=kwcanary-jwt-secret-that-is-long-enough
JWT_SECRET_ALSO_ACCEPTED=
MAIL_KEY=kwcanary-mail
PEPPER=kwcanary-pepper
QUEUE_KEY=kwcanary-queue
SESSION_KEY=kwcanary-session
";

const KEYS: [(&str, &str); 6] = [
    ("HOOK_KEY", "kwcanary-hook"),
    ("JWT_SECRET", "kwcanary-jwt-secret-that-is-long-enough"),
    ("MAIL_KEY", "kwcanary-mail"),
    ("PEPPER", "kwcanary-pepper"),
    ("QUEUE_KEY", "kwcanary-queue"),
    ("SESSION_KEY", "kwcanary-session"),
];

fn monday(ground: &Engine, compose: &Path) -> Project {
    let files = Files { compose: SERVICES, config: MONDAY, env: ENV, containers: 4, ..SHOP };
    let project = Project::of(ground.clone(), compose, &files);
    project.run(&["adopt", "--all", "--last-rotated", "2020-01-06", "--yes"], 0);
    project
}

impl Project {
    /// Whether each key is another one than at first.
    fn changed(&self) -> [bool; 6] {
        KEYS.map(|(name, old)| self.variable(name) != old)
    }
}

/// Counts the containers that are made from now on.
struct Made {
    events: std::process::Child,
    list: PathBuf,
}

impl Made {
    fn of(project: &Project) -> Self {
        let list = project.folder.path().join("made");
        let own = format!("label=com.docker.compose.project={}", project.name());
        let service = "{{index .Actor.Attributes \"com.docker.compose.service\"}}";
        let mut events = project.ground.command("docker");
        events.args(["events", "--filter", "event=create", "--filter", &own, "--format", service]);
        let file = std::fs::File::create(&list).unwrap();
        let events = events.stdin(Stdio::null()).stdout(file).spawn().unwrap();
        Self { events, list }
    }

    fn counts(&self) -> [usize; 3] {
        // The engine tells of it a moment later.
        std::thread::sleep(Duration::from_millis(300));
        let told = std::fs::read_to_string(&self.list).unwrap();
        let of = |service: &str| told.lines().filter(|line| *line == service).count();
        ["backend", "mailer", "worker"].map(of)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.events.kill().ok();
        self.events.wait().ok();
    }
}

#[test]
fn what_is_due_on_monday_is_rotated_by_one_command() {
    side_by_side(&[all_six, one_leaves_alone, a_shared_roll_fails]);
}

fn all_six(ground: &Engine, compose: &Path) {
    let project = monday(ground, compose);
    let made = Made::of(&project);
    let said = project.run(&["rotate", "--due", "7d", "--yes", "--soak"], 0);
    assert_eq!(said.matches("completed; v2 is current").count(), 6, "{said}");
    assert_eq!(project.changed(), [true; 6]);
    // The keyring takes three rolls of the backend, and all others join the second one.
    assert!(said.contains("3 rolls of backend, shared (8 apart)"), "{said}");
    assert_eq!(made.counts(), [3 * 2, 1, 1], "{said}");
    project.run(&["doctor"], 0);
    let said = project.run(&["rotate", "--due", "7d", "--yes"], 0);
    assert!(said.contains("nothing"), "{said}");
}

fn one_leaves_alone(ground: &Engine, compose: &Path) {
    let project = monday(ground, compose);
    // Only this one has a store of its own, whose file cannot be written.
    let config = project
        .config
        .replace("stores: { app: QUEUE_KEY }", "stores: { app: QUEUE_KEY, other: QUEUE_KEY }");
    let config = config.replace(
        "  app: { env_file: { path: .env } }",
        "  app: { env_file: { path: .env } }\n  other: { env_file: { path: gone/other.env } }",
    );
    let project = Project { config, ..project };
    project.mint(32);
    let said = project.run(&["rotate", "--due", "7d", "--yes", "--soak"], 4);
    assert!(said.contains("queue@default: refused; nothing was changed"), "{said}");
    assert_eq!(said.matches("completed; v2 is current").count(), 5, "{said}");
    assert_eq!(project.changed(), [true, true, true, true, false, true]);
}

fn a_shared_roll_fails(ground: &Engine, compose: &Path) {
    let project = monday(ground, compose);
    let made = Made::of(&project);
    project.mint(64);
    let said = project.run(&["rotate", "hook", "pepper", "session", "--yes"], 2);
    assert_eq!(said.matches("undone; v1 is current").count(), 3, "{said}");
    assert!(said.contains("`keywheel rotate hook pepper session --separately` tells"), "{said}");
    assert_eq!(project.changed(), [false; 6]);
    assert_eq!(made.counts(), [2, 0, 0], "one container was the price: {said}");
    project.run(&["doctor"], 0);
    let said = project.run(&["rotate", "hook", "pepper", "session", "--separately", "--yes"], 2);
    assert!(said.contains("pepper@default: undone"), "{said}");
    assert_eq!(project.changed(), [true, false, false, false, false, true]);
}
