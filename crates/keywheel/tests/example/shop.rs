//! A copy of the example's folder, with an engine of its own and everything that a user types in the path.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use keywheel_ground::docker::{Docker, composes};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The shop, as `open-shop` opens it.
pub(crate) struct Shop {
    docker: Docker,
    folder: tempfile::TempDir,
    /// The ports of this machine, as the example names them and as they are here.
    ports: [(&'static str, String); 2],
    /// Every value that was ever in use.
    values: Vec<String>,
}

/// What a command answered.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) said: String,
}

impl Shop {
    /// Copies the folder; none, with the reason, where that cannot run.
    pub(crate) fn copy() -> Option<Self> {
        let docker = match Docker::start() {
            Ok(docker) => docker,
            Err(why) => {
                println!("skipped: the example for Docker Compose ({why})");
                return None;
            }
        };
        let second = composes().into_iter().find(|path| !path.starts_with("/usr"));
        let Some(compose) = second else {
            println!("skipped: the example for Docker Compose (Compose 2 is not installed)");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("example").tempdir().unwrap();
        for name in ["shop", "bin", "home", "docker", "docker/cli-plugins"] {
            fs::DirBuilder::new().mode(0o700).create(folder.path().join(name)).unwrap();
        }
        let at = |name: &str| folder.path().join(name);
        symlink(env!("CARGO_BIN_EXE_keywheel"), at("bin/keywheel")).unwrap();
        symlink(&compose, at("bin/docker-compose")).unwrap();
        symlink(&compose, at("docker/cli-plugins/docker-compose")).unwrap();
        let ports = [("4000", free_port()), ("4001", free_port())];
        let shop = Self { docker, folder, ports, values: Vec::new() };
        for name in ["docker-compose.yml", "open-shop", "Dockerfile", ".gitignore"] {
            let from = Path::new(REPOSITORY).join("examples/compose").join(name);
            let text = shop.with_ports(&fs::read_to_string(&from).unwrap());
            fs::write(shop.path().join(name), text).unwrap();
            let mode = fs::metadata(from).unwrap().permissions();
            fs::set_permissions(shop.path().join(name), mode).unwrap();
        }
        Some(shop)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("shop")
    }

    /// Puts the ports that are free here into a text of the example.
    pub(crate) fn with_ports(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |text, (printed, here)| text.replace(printed, here))
    }

    pub(crate) fn edit(&self, name: &str, edit: impl FnOnce(String) -> String) {
        let path = self.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, edit(text)).unwrap();
    }

    /// Runs what somebody types, in the shop's folder, or in the repository for the project's own chores.
    pub(crate) fn sh(&mut self, typed: &str) -> Ran {
        let mut shell = self.docker.command("sh");
        shell.arg("-ec").arg(format!("exec 2>&1\n{typed}")).stdin(Stdio::null());
        let folder = match typed.starts_with("cargo ") {
            true => Path::new(REPOSITORY).to_owned(),
            false => self.path(),
        };
        let at = |name: &str| self.folder.path().join(name);
        let path = std::env::var("PATH").unwrap_or_default();
        shell.current_dir(folder).env("PATH", format!("{}:{path}", at("bin").display()));
        shell.env("DOCKER_CONFIG", at("docker"));
        for (name, below) in [("XDG_STATE_HOME", "home/state"), ("XDG_CONFIG_HOME", "home/config")]
        {
            shell.env(name, at(below));
        }
        let output = shell.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        self.learn();
        let told = self.values.iter().any(|value| said.contains(value.as_str()));
        assert!(!told, "a value was printed by `{typed}`");
        Ran { code: output.status.code().unwrap(), said }
    }

    /// Runs a command that must end well.
    #[track_caller]
    pub(crate) fn well(&mut self, typed: &str) -> String {
        let ran = self.sh(typed);
        assert_eq!(ran.code, 0, "{typed}:\n{}", ran.said);
        ran.said
    }

    /// Returns what the file of variables gives a name.
    pub(crate) fn value(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path().join(".env")).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim_matches('\'').to_owned()
    }

    fn learn(&mut self) {
        let names = ["JWT_SECRET", "JWT_SECRET_ALSO_ACCEPTED", "OPENAI_API_KEY"];
        let key = fs::read_to_string(self.path().join("openai-admin-key")).unwrap_or_default();
        let now = names.map(|name| self.value(name)).into_iter().chain([key.trim().to_owned()]);
        self.values.extend(now.filter(|value| value.len() > 8));
        self.values.sort();
        self.values.dedup();
    }

    /// Returns how many containers were given a value, under any name.
    pub(crate) fn holders(&self, value: &str) -> usize {
        let all = self.docker.docker(&["ps", "-aq"]);
        let shown = |id: &str| self.docker.docker(&["inspect", "-f", "{{.Config.Env}}", id]);
        all.lines().filter(|id| shown(id).contains(&format!("={value}"))).count()
    }
}

pub(crate) fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}
