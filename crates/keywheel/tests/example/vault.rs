//! The example for Vault and OpenBao, with real servers: its walk-through is typed as printed, and answers as printed.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keywheel_ground::openbao::OpenBao;
use keywheel_ground::postgres::Postgres;

use super::readme::{Block, blocks, compare};
use super::shop::free_port;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/vault");

const FILES: [&str; 5] = ["keywheel.yaml", "open-shop", "close-shop", "backend", "worker"];

const PASSWORD: &str = "kwcanary-example-vault";

struct Shop {
    bao: OpenBao,
    postgres: Postgres,
    folder: tempfile::TempDir,
    ports: [(&'static str, String); 5],
}

impl Shop {
    /// Copies the folder; none, with the reason, where that cannot run.
    fn copy() -> Option<Self> {
        let skipped = |why: String| println!("skipped: the example for Vault and OpenBao ({why})");
        // Each ends with the thread that started it.
        let bao = OpenBao::start().map_err(skipped).ok()?;
        let postgres = Postgres::start(PASSWORD, None).map_err(skipped).ok()?;
        let folder = tempfile::Builder::new().prefix("example").tempdir().unwrap();
        for name in ["shop", "bin"] {
            fs::DirBuilder::new().mode(0o700).create(folder.path().join(name)).unwrap();
        }
        symlink(env!("CARGO_BIN_EXE_keywheel"), folder.path().join("bin/keywheel")).unwrap();
        symlink(bao.program(), folder.path().join("bin/bao")).unwrap();
        let (one, two) = (free_port(), free_port());
        let ports = [
            ("127.0.0.1:8200", format!("127.0.0.1:{}", bao.port())),
            ("127.0.0.1:5432", format!("127.0.0.1:{}", postgres.port())),
            ("4101", one.clone()),
            ("4102", two.clone()),
            ("\"410$replica\"", format!("$([ $replica = 1 ] && echo {one} || echo {two})")),
        ];
        let shop = Self { bao, postgres, folder, ports };
        for name in FILES {
            let from = Path::new(EXAMPLE).join(name);
            fs::write(shop.path().join(name), shop.here(&fs::read_to_string(&from).unwrap()))
                .unwrap();
            let mode = fs::metadata(from).unwrap().permissions();
            fs::set_permissions(shop.path().join(name), mode).unwrap();
        }
        Some(shop)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("shop")
    }

    /// Puts the ports that are free here into a text of the example.
    fn here(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |text, (printed, here)| text.replace(printed, here))
    }

    /// Runs what somebody types, and returns all that it says.
    fn well(&self, typed: &str) -> String {
        let mut shell = Command::new("sh");
        shell.arg("-ec").arg(format!("exec 2>&1\n{typed}")).stdin(Stdio::null());
        let at = |name: &str| self.folder.path().join(name);
        let path = std::env::var("PATH").unwrap_or_default();
        shell.current_dir(self.path()).env("PATH", format!("{}:{path}", at("bin").display()));
        shell.env("BAO_ADDR", self.bao.address()).env("BAO_TOKEN", self.bao.token());
        shell.env("PGHOST", "127.0.0.1").env("PGPORT", self.postgres.port().to_string());
        shell.env("PGUSER", "postgres").env("PGPASSWORD", PASSWORD);
        for (name, below) in
            [("HOME", ""), ("XDG_STATE_HOME", "state"), ("XDG_CONFIG_HOME", "config")]
        {
            shell.env(name, at("home").join(below));
        }
        let output = shell.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{typed}:\n{said}");
        let values =
            ["backend", "worker"].map(|name| self.bao.read(&format!("secret/data/shop/{name}")));
        for held in values.iter().flatten() {
            let held = held["data"]["data"].as_object().unwrap().values();
            let told = held
                .filter_map(|value| value.as_str())
                .any(|value| value.len() > 8 && said.contains(value));
            assert!(!told, "a value was printed by `{typed}`");
        }
        said
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        fs::remove_file(self.path().join("run/open")).ok();
    }
}

#[test]
fn the_walk_through_of_vault_is_true() {
    let Some(shop) = Shop::copy() else { return };
    let printed = shop.here(include_str!("../../../../examples/vault/README.md"));
    let (mut answered, mut elsewhere) = (None, 0);
    for block in blocks(&printed) {
        match block {
            Block::Typed(typed) => answered = Some(shop.well(&typed)),
            Block::Answered(printed) => {
                compare(&printed, &answered.take().expect("something is typed before"));
            }
            // The servers, which run here already.
            Block::Elsewhere => elsewhere += 1,
            Block::Edited(_) => panic!("nothing is edited in this walk-through"),
        }
    }
    assert_eq!(elsewhere, 2);
}
