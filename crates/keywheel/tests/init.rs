//! `keywheel init` on folders full of canaries: whatever it proposes, warns of or writes, no value is in it.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const MARKER: &str = "kwcanary";
const OPENAI: &str = "sk-proj-kwcanary0123456789abcdefghij";

/// A folder, and what was put into it.
struct World {
    folder: tempfile::TempDir,
    given: BTreeMap<PathBuf, String>,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl World {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("shop").tempdir().unwrap();
        let mut world = Self { folder, given: BTreeMap::new() };
        for (name, text) in files {
            world.put(name, text);
        }
        world
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn put(&mut self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        drop(self.given.insert(path, text.to_owned()));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        command.args(arguments).current_dir(self.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    /// Runs the program, and looks for canaries in all that it said and wrote.
    fn run(&self, arguments: &[&str]) -> Ran {
        self.ran(self.command(arguments).output().unwrap())
    }

    fn ran(&self, output: std::process::Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ran = Ran {
            code: output.status.code().unwrap(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        for said in [&ran.stdout, &ran.stderr] {
            assert!(!said.contains(MARKER), "{said}");
            assert!(!said.contains("panicked"), "{said}");
        }
        self.look(self.path());
        ran
    }

    /// What was given is as it was; what is new holds no canary.
    fn look(&self, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() && path.file_name().unwrap() != ".git" {
                self.look(&path);
            } else if kind.is_file() {
                let text = fs::read(&path).unwrap();
                match self.given.get(&path).filter(|_| !path.ends_with("keywheel.yaml")) {
                    Some(given) => assert_eq!(text, given.as_bytes(), "{}", path.display()),
                    None => assert!(
                        !String::from_utf8_lossy(&text).contains(MARKER),
                        "{}",
                        path.display()
                    ),
                }
            }
        }
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[arguments, &["--output", "json"]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Returns the text of the file, after the program has read it without a complaint.
    fn written(&self) -> String {
        let ran = self.run(&["config", "show"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        fs::read_to_string(self.path().join("keywheel.yaml")).unwrap()
    }
}

fn warnings(json: &Value) -> String {
    let one = |warning: &Value| {
        let file = warning["file"].as_str().unwrap_or("-");
        format!("{file}:{}: {}\n", warning["line"], warning["message"].as_str().unwrap())
    };
    json["warnings"].as_array().unwrap().iter().map(one).collect()
}

fn shop() -> World {
    World::with(&[
        (
            "compose.yaml",
            "name: shop\n\
             x-common: &common { env_file: [.env, { path: more.env, required: false }] }\n\
             services:\n  \
               backend:\n    <<: *common\n    secrets: [db_password]\n    environment: { LEVEL: info, COST: $$1 }\n  \
               worker:\n    environment: [ \"AI_KEY=${OPENAI_API_KEY:?missing}\", \"JWT_SECRET\" ]\n    deploy: { replicas: 2 }\n\
             secrets: { db_password: { file: ./secrets/db_password.txt } }\n",
        ),
        (
            ".env",
            &format!(
                "JWT_SECRET=kwcanary-jwt-secret\nJWT_SECRET_PREVIOUS=\nOPENAI_API_KEY={OPENAI}\n\
                 SESSION_SECRET='kwcanary # \"session\"'\nSTRIPE_KEY=sk_live_kwcanary0123456789\n\
                 SENTRY_DSN=https://0123kwcanary@o1.ingest.sentry.io/2\nPHC=phc_kwcanary0123456789abcdef\nPORT=3000\n"
            ),
        ),
        ("secrets/db_password.txt", "kwcanary-db"),
        ("node_modules/x/.env", "LOST_TOKEN=kwcanary-lost"),
    ])
}

#[test]
fn the_first_run_writes_a_file_that_the_program_takes_and_the_second_adds_nothing() {
    let world = shop();
    let ran = world.run(&["init"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let text = world.written();
    assert_eq!(ran.stdout, text);
    assert!(ran.stderr.contains("keywheel check") && ran.stderr.contains("keywheel adopt --all"));
    let mode = fs::metadata(world.path().join("keywheel.yaml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    let (_, text) = text.split_once("stores:").unwrap();
    insta::assert_snapshot!(format!("stores:{text}"), @"
    stores:
      app: { env_file: { path: .env } }
      db-password: { file: { path: secrets/db_password.txt } }

    workloads:
      backend:
        # One container: nothing serves while its successor starts. Where two at once do no harm, add
        #   start_first: true
        # A former signing secret is proven dead where each container answers 200 to a token that it accepts,
        # and 401 to any other. If there is such a place, add it:
        #   token: { port: 8080, path: /me }
        compose_service: { file: compose.yaml, service: backend }
        reads: [app, db-password]
      worker:
        # A former signing secret is proven dead where each container answers 200 to a token that it accepts,
        # and 401 to any other. If there is such a place, add it:
        #   token: { port: 8080, path: /me }
        compose_service: { file: compose.yaml, service: worker, replicas: 2, variables: { OPENAI_API_KEY: AI_KEY } }
        reads: [app]

    secrets:
      # `JWT_SECRET` in `.env`: a signing secret; read by backend, worker
      jwt-secret:
        issuer: { jwt_secret: { bytes: 32 } }
        # There are two roads. This one ends every session that the former secret signed, at each rotation:
        # `accept` says that you know. The other one ends none: let the application accept tokens of a second
        # secret too, from a variable `JWT_SECRET_ALSO_ACCEPTED` beside the first, and write
        #   strategy: { keyring: { longest_token: 24h } }
        #   stores: { …: { JWT_SECRET: current, JWT_SECRET_ALSO_ACCEPTED: also_accepted } }
        strategy: cutover
        accept: [sessions_end]
        stores: { app: JWT_SECRET }
        read_by: [backend, worker]

      # `OPENAI_API_KEY` in `.env`: an OpenAI key; read by backend, worker
      openai-api-key:
        issuer:
          openai:
            # The id of the project that the key belongs to, from the settings of your organisation at OpenAI.
            # Where environments have projects of their own: { by_env: { staging: proj_…, production: proj_… } }
            project: proj_REPLACE_ME
            # An admin key, which keywheel reads from its own environment.
            admin_key: { env: OPENAI_ADMIN_KEY }
        stores: { app: OPENAI_API_KEY }
        read_by: [backend, worker]

      # `SESSION_SECRET` in `.env`: a secret, by its name; read by backend
      # Whether it is ours to make, only you know. If nobody else issues it, take the first `# ` off these lines:
      # session-secret:
      #   issuer: { random: {} }
      #   stores: { app: SESSION_SECRET }
      #   read_by: [backend]

      # `secrets/db_password.txt`: a secret, by its name; read by backend
      # Whether it is ours to make, only you know. If nobody else issues it, take the first `# ` off these lines:
      # db-password:
      #   issuer: { random: {} }
      #   stores: { db-password: content }
      #   read_by: [backend]

    # Found, and left to you:
    # `STRIPE_KEY` in `.env`: a Stripe key; no issuer for it yet
    # `SENTRY_DSN` in `.env`: a Sentry DSN, which is made to be published; nothing to rotate
    # `PHC` in `.env`: a PostHog project key, which is made to be published; nothing to rotate
    ");
    let again = world.run(&["init", "--write"]);
    assert_eq!((again.code, again.stdout.as_str()), (0, ""));
    assert!(again.stderr.contains("lacks nothing"), "{}", again.stderr);
}

#[test]
fn a_dry_run_writes_nothing_and_json_tells_the_findings() {
    let world = shop();
    let json = world.json(&["init", "--dry-run"]);
    assert!(!world.path().join("keywheel.yaml").exists());
    assert_eq!((&json["schema"], &json["written"]), (&1.into(), &false.into()));
    let rows = json["found"].as_array().unwrap().iter().map(|one| {
        let text = |key: &str| one[key].as_str().unwrap_or("-").to_owned();
        format!("{} {} {} {}", text("variable"), text("issuer"), text("state"), one["services"])
    });
    insta::assert_snapshot!(rows.collect::<Vec<_>>().join("\n"), @r#"
    JWT_SECRET jwt_secret proposed ["backend","worker"]
    JWT_SECRET_PREVIOUS jwt_secret listed ["backend"]
    OPENAI_API_KEY openai proposed ["backend","worker"]
    SESSION_SECRET random commented_out ["backend"]
    STRIPE_KEY - listed ["backend"]
    SENTRY_DSN - listed ["backend"]
    PHC - listed ["backend"]
    - random commented_out ["backend"]
    "#);
    assert!(json["proposal"].as_str().unwrap().contains("jwt-secret:"));
}

#[test]
fn a_later_run_adds_what_is_new_and_changes_nothing_else() {
    let mut world = shop();
    assert_eq!(world.run(&["init"]).code, 0);
    let before = world.written();
    world.put("more.env", "APP_JWT_SECRET=kwcanary-second\nMAIL_PASSWORD=kwcanary-mail\n");
    let shown = world.run(&["init"]);
    assert_eq!((shown.code, world.written()), (0, before.clone()));
    assert!(
        shown.stdout.contains("app-jwt-secret:") && !shown.stdout.contains("openai"),
        "{}",
        shown.stdout
    );
    assert_eq!(world.json(&["init"])["written"], Value::from(false));
    let ran = world.run(&["init", "--write"]);
    let after = world.written();
    // The workload of the first run names the stores that it reads, and the new one is not among them.
    assert_eq!((ran.code, &after), (1, &before), "{}", ran.stderr);
    let edited = before.replace("reads: [app, db-password]", "reads: [app, db-password, more]");
    let edited =
        edited.replace("\nstores:\n", "\nstores:\n  more: { env_file: { path: more.env } }\n");
    fs::write(world.path().join("keywheel.yaml"), &edited).unwrap();
    let ran = world.run(&["init", "--write"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let after = world.written();
    assert!(after.contains("app-jwt-secret:\n") && after.contains("# mail-password:"), "{after}");
    let kept = |line: &str| after.lines().any(|other| other == line);
    assert!(edited.lines().all(kept));
    assert!(world.run(&["init"]).stderr.contains("lacks nothing"));
}

#[test]
fn a_file_that_cannot_be_added_to_by_lines_is_left_alone() {
    let world = World::with(&[
        ("compose.yaml", "services: { web: { env_file: .env } }\n"),
        (".env", "JWT_SECRET=kwcanary-jwt\n"),
        ("keywheel.yaml", "project: shop\nstores: {}\nworkloads: {}\n"),
    ]);
    let ran = world.run(&["init", "--write"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("nothing changed") && ran.stderr.contains("by hand"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        fs::read_to_string(world.path().join("keywheel.yaml")).unwrap(),
        "project: shop\nstores: {}\nworkloads: {}\n"
    );
    assert!(world.run(&["init"]).stdout.contains("strategy: cutover"));
}

#[test]
fn what_endangers_values_is_told() {
    let mut world = World::with(&[
        (
            "compose.yaml",
            "services:\n  web:\n    env_file: .env\n    environment:\n      API_TOKEN: kwcanary-literal\n      DATABASE_URL: \"postgres://shop:${DB_PASSWORD}@db\"\n",
        ),
        (
            ".env",
            "API_TOKEN=kwcanary-masked\nDB_PASSWORD=kwcanary-password\nA_SECRET=kwcanary-same\nOTHER=kwcanary-same\n",
        ),
        (".env.production", "MAIL_TOKEN=kwcanary-shared\n"),
        (".env.staging", "MAIL_TOKEN=kwcanary-shared\n"),
        (".env.example", "OPENAI_API_KEY=sk-proj-kwcanary0123456789\n"),
        (".env.bak", "A_SECRET=kwcanary-former\n"),
    ]);
    world.put("docker-compose.yml", "services: {}\n");
    fs::set_permissions(world.path().join(".env"), fs::Permissions::from_mode(0o644)).unwrap();
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.arg("-C").arg(world.path()).args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null");
        git.output().is_ok_and(|output| output.status.success())
    };
    let with_git = git(&["init", "-q"]) && git(&["add", "-f", ".env.production"]);
    let told = warnings(&world.json(&["init", "--dry-run"]));
    let tracked = ".env.production:null: is tracked by git, whose history keeps every value that was committed\n";
    assert_eq!(told.contains(tracked), with_git);
    insta::assert_snapshot!(told.replace(tracked, ""), @"
    .env:null: is open to every user of this machine (`chmod 600` closes it)
    .env:1: `API_TOKEN` is hidden from service `web` by its `environment` (compose.yaml:5), so that a new value would not reach it
    .env:3: `A_SECRET` holds the same value as `OTHER` in `.env`
    .env.bak:null: looks like a copy of a file of variables, and may hold former values; remove it
    .env.example:1: `OPENAI_API_KEY` has the format of a credential, in an example: an OpenAI key
    .env.production:1: `MAIL_TOKEN` holds the same value as `MAIL_TOKEN` in `.env.staging`: production and staging share it; give each its own before the first rotation
    compose.yaml:5: `API_TOKEN` stands in the Compose file itself: a secret, by its name; move it into a file of variables
    docker-compose.yml:null: is not read: Compose prefers `compose.yaml` beside it
    ");
}

#[test]
fn environments_get_their_own_parts() {
    let compose = "services:\n  web: { env_file: .env }\n";
    let env = |number: u8| format!("JWT_SECRET=kwcanary-{number}\nJWT_SECRET_ALSO_ACCEPTED=\n");
    let world = World::with(&[
        ("staging/compose.yaml", compose),
        ("staging/.env", &env(1)),
        ("production/compose.yaml", compose),
        ("production/.env", &env(2)),
    ]);
    assert_eq!(world.run(&["init"]).code, 0);
    let text = world.written();
    let (_, text) = text.split_once("environments:").unwrap();
    insta::assert_snapshot!(format!("environments:{text}"), @"
    environments:
      production:
        protected: true
        stores:
          app: { env_file: { path: production/.env } }
        workloads:
          web:
            # One container: nothing serves while its successor starts. Where two at once do no harm, add
            #   start_first: true
            # A former signing secret is proven dead where each container answers 200 to a token that it accepts,
            # and 401 to any other. If there is such a place, add it:
            #   token: { port: 8080, path: /me }
            compose_service: { file: production/compose.yaml, service: web }
      staging:
        stores:
          app: { env_file: { path: staging/.env } }
        workloads:
          web:
            # One container: nothing serves while its successor starts. Where two at once do no harm, add
            #   start_first: true
            # A former signing secret is proven dead where each container answers 200 to a token that it accepts,
            # and 401 to any other. If there is such a place, add it:
            #   token: { port: 8080, path: /me }
            compose_service: { file: staging/compose.yaml, service: web }

    secrets:
      # `JWT_SECRET` in `production/.env` (production): a signing secret; read by web
      # `JWT_SECRET_ALSO_ACCEPTED` in `production/.env` (production): a signing secret; read by web
      # `JWT_SECRET` in `staging/.env` (staging): a signing secret; read by web
      # `JWT_SECRET_ALSO_ACCEPTED` in `staging/.env` (staging): a signing secret; read by web
      jwt-secret:
        issuer: { jwt_secret: { bytes: 32 } }
        # How long the longest token that the application signs is good for.
        strategy: { keyring: { longest_token: 24h } }
        stores: { app: { JWT_SECRET: current, JWT_SECRET_ALSO_ACCEPTED: also_accepted } }
        read_by: [web]
    ");
}

#[test]
fn one_value_under_two_names_is_one_secret() {
    let world = World::with(&[
        ("compose.yaml", "services: { web: { env_file: .env } }\n"),
        (".env", &format!("OPENAI_API_KEY={OPENAI}\nAI_KEY={OPENAI}\n")),
    ]);
    let ran = world.run(&["init"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.stderr.contains("`OPENAI_API_KEY` holds the same value as `AI_KEY`"),
        "{}",
        ran.stderr
    );
    assert!(
        world.written().contains("stores: { app: { OPENAI_API_KEY: current, AI_KEY: current } }")
    );
}

#[test]
fn hostile_names_and_values_stay_where_they_are() {
    let world = World::with(&[
        (
            "compose.yaml",
            "services:\n  web:\n    env_file: [\"we\\\"ird # ü\\n- x: \\u202e/.env\"]\n    labels: [\"${kwcanary}\"]\n  \"kwcanary\\n: x\": {}\n",
        ),
        (
            "we\"ird # ü\n- x: \u{202e}/.env",
            "JWT_SECRET='kwcanary # \"x\" ü\nsecond kwcanary: line'\nOPENAI_API_KEY=\"sk-proj-kwcanary0123456789abcdef\" # kwcanary\n\
             skprojkwcanary0123_SECRET=kwcanary-a\nTWICE_TOKEN=kwcanary-1\nTWICE_TOKEN=kwcanary-2\nEXPANDED_KEY=kwcanary$X\nEMPTY_KEY=\n",
        ),
        ("it's/compose.yml", "services: { \"true\": { env_file: ../.env } }\n"),
        (".env", "ROOT_JWT_SECRET=kwcanary-root\n"),
        ("keywheel.yaml.env", "X_TOKEN=kwcanary-x\r\nY_TOKEN=\"kwcanary\\n\\\"y\"\r\n"),
    ]);
    let ran = world.run(&["init"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let text = world.written();
    for line in [
        "    compose_service: { file: \"it's/compose.yml\", service: \"true\" }",
        "  # Not as it stands: it is assigned more than once, and only the last one counts; leave one of them.",
        "  # Not as it stands: it is expanded from another variable; give it a value of its own.",
        "  # Not as it stands: it is empty.",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
    assert!(ran.stderr.contains("does not read like one"));
    assert!(world.run(&["init"]).stderr.contains("lacks nothing"));
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_goes_on() {
    let world = World::with(&[
        ("a/compose.yaml", "services:\n  web: [kwcanary\n"),
        ("a/.env", "A_TOKEN=kwcanary-a\nkwcanary is no statement\n"),
        ("b/compose.yaml", "services: { web: { env_file: .env } }\n"),
        ("b/.env", "JWT_SECRET=kwcanary-b\n"),
    ]);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "OUT_TOKEN=kwcanary-out\n").unwrap();
    symlink(outside.path().join("secret"), world.path().join(".env")).unwrap();
    symlink(outside.path(), world.path().join("folder")).unwrap();
    symlink(world.path(), world.path().join("b/round")).unwrap();
    let _: Option<_> = Command::new("mkfifo").arg(world.path().join("pipe.env")).status().ok();
    fs::create_dir(world.path().join("c.env")).unwrap();
    let json = world.json(&["init"]);
    assert_eq!(json["found"].as_array().unwrap().len(), 1);
    assert!(world.written().contains("jwt-secret:"));
    let told = warnings(&json);
    insta::assert_snapshot!(told.replace("pipe.env:null: is no file\n", ""), @"
    .env:null: is a symlink that leads out of this folder, and is not read
    a/.env:2: this is nothing that Compose can read; the file is left out
    a/compose.yaml:2: this is not YAML: unclosed bracket '['; the file is left out
    ");
}

#[test]
fn a_missing_permission_is_told() {
    let world = World::with(&[
        ("compose.yaml", "services: { web: { env_file: [.env, closed.env] } }\n"),
        (".env", "JWT_SECRET=kwcanary-jwt\n"),
        ("closed.env", "A_TOKEN=kwcanary-closed\n"),
    ]);
    let mut command = world.command(&["init"]);
    if rustix::process::geteuid().is_root() {
        for path in world.given.keys().filter(|path| !path.ends_with("closed.env")) {
            std::os::unix::fs::chown(path, Some(65534), None).unwrap();
        }
        command.uid(65534);
    }
    fs::set_permissions(world.path().join("closed.env"), fs::Permissions::from_mode(0o000))
        .unwrap();
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let output = command.output();
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(world.path().join("closed.env"), fs::Permissions::from_mode(0o600))
        .unwrap();
    let Ok(output) = output else {
        println!("skipped: another user cannot start the program");
        return;
    };
    let ran = world.ran(output);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("closed.env: cannot be read: permission denied"), "{}", ran.stderr);
    assert!(ran.stderr.contains("`keywheel.yaml` cannot be written"), "{}", ran.stderr);
    assert!(!world.path().join("keywheel.yaml").exists());
}

#[test]
fn nothing_to_find_is_said() {
    let empty = World::with(&[]);
    let ran = empty.run(&["init"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("there is no Compose file"), "{}", ran.stderr);
    let dull = World::with(&[(".env", "PORT=3000\nNAME=kwcanary\n")]);
    let ran = dull.run(&["init"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("no credential was recognised"), "{}", ran.stderr);
    assert!(!dull.path().join("keywheel.yaml").exists());
}

#[test]
fn a_file_that_is_wrong_is_never_replaced() {
    let world =
        World::with(&[(".env", "JWT_SECRET=kwcanary\n"), ("keywheel.yaml", "projct: shop\n")]);
    for arguments in [&["init"][..], &["init", "--write"]] {
        let ran = world.run(arguments);
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("keywheel.yaml:1:1"), "{}", ran.stderr);
    }
    let link = World::with(&[
        ("compose.yaml", "services: { web: { env_file: .env } }\n"),
        (".env", "JWT_SECRET=kwcanary\n"),
    ]);
    symlink("nowhere", link.path().join("keywheel.yaml")).unwrap();
    assert_eq!(link.run(&["init"]).code, 1);
    assert!(!link.path().join("nowhere").exists());
}
