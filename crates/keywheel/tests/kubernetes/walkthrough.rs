//! The walk-through of the example: what is typed is run as printed, on the stand-in of a cluster, and answers as printed. What
//! `kubectl` and `kind` do there is done by the API.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keywheel_twins::kubernetes::run::{Run, Runtime, Settings};
use keywheel_twins::kubernetes::{ADMIN, Cluster, Kind};
use serde_json::{Value, json};

use super::readme::{Block, blocks, compare, edited};
use super::scenarios;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kubernetes");

/// The context that is printed.
const CONTEXT: &str = "kind-shop";

struct Shop {
    cluster: Cluster,
    _run: Run,
    folder: tempfile::TempDir,
    values: BTreeSet<String>,
}

impl Shop {
    fn copy() -> Self {
        let folder = tempfile::Builder::new().prefix("example").tempdir().unwrap();
        for name in ["shop", "bin", "home", "pods"] {
            fs::DirBuilder::new().mode(0o700).create(folder.path().join(name)).unwrap();
        }
        symlink(env!("CARGO_BIN_EXE_keywheel"), folder.path().join("bin/keywheel")).unwrap();
        let cluster = Cluster::start().unwrap();
        let runtime = Runtime::Processes { folder: folder.path().join("pods") };
        let run = cluster.run(Settings { runtime, ..Settings::default() }).unwrap();
        let shop = Self { cluster, _run: run, folder, values: BTreeSet::new() };
        shop.cluster.write_kubeconfig(&shop.folder.path().join("kubeconfig")).unwrap();
        let config = printed("keywheel.yaml").replace(CONTEXT, ADMIN);
        fs::write(shop.config(), config).unwrap();
        shop
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("shop/keywheel.yaml")
    }

    /// Does what `open-shop` does.
    fn open(&self) {
        let objects = self.cluster.objects();
        objects.make_namespace("shop");
        let value = |name: &str| STANDARD.encode(format!("kwcanary-{name}-0123456789abcdefghij"));
        let secret = json!({
            "metadata": { "namespace": "shop", "name": "api-keys" },
            "data": { "jwt": value("jwt"), "jwt-also-accepted": "", "webhook-key": value("webhook") },
        });
        objects.create(Kind::Secret, secret, "kubectl-create").unwrap();
        let program = scenarios::program(self.folder.path());
        for document in printed("shop.yaml").split("\n---\n") {
            let mut object: Value = serde_saphyr::from_str(document).unwrap();
            let kind = match object["kind"].as_str().unwrap() {
                "Deployment" => Kind::Deployment,
                "PodDisruptionBudget" => Kind::PodDisruptionBudget,
                _ => Kind::Service,
            };
            let container = "/spec/template/spec/containers/0";
            let container =
                object.pointer_mut(container).filter(|it| it["image"] == "keywheel-example");
            if let Some(container) = container {
                container["command"] = json!([program]);
            }
            objects.create(kind, object, "kubectl-client-side-apply").unwrap();
        }
        self.rolled_out();
    }

    /// Waits until the pods are ready, and so old that they have certainly read nothing of what follows.
    fn rolled_out(&self) {
        let is_available = |wanted: u64| {
            move |object: &std::sync::Arc<Value>| object["status"]["availableReplicas"] == wanted
        };
        for _ in 0..600 {
            let (all, _) = self.cluster.objects().list(Kind::Deployment, Some("shop"));
            if all.iter().any(is_available(3)) && all.iter().any(is_available(1)) {
                std::thread::sleep(std::time::Duration::from_secs(3));
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("the pods do not come up")
    }

    /// Runs what somebody types in the shop's folder, and returns how it ended and what it said.
    fn sh(&mut self, typed: &str) -> (i32, String) {
        let at = |name: &str| self.folder.path().join(name);
        let mut shell = Command::new("sh");
        shell.arg("-ec").arg(format!("exec 2>&1\n{typed}")).stdin(Stdio::null());
        let path = std::env::var("PATH").unwrap_or_default();
        shell.current_dir(at("shop")).env("PATH", format!("{}:{path}", at("bin").display()));
        shell.env("KUBECONFIG", at("kubeconfig"));
        for (name, below) in [("XDG_STATE_HOME", "home/state"), ("XDG_CONFIG_HOME", "home/config")]
        {
            shell.env(name, at(below));
        }
        let output = shell.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        self.learn();
        let is_told = self.values.iter().any(|value| said.contains(value.as_str()));
        assert!(!is_told, "a value was printed by `{typed}`");
        (output.status.code().unwrap(), said)
    }

    fn learn(&mut self) {
        let (secrets, _) = self.cluster.objects().list(Kind::Secret, Some("shop"));
        for (_, value) in secrets.iter().flat_map(|it| it["data"].as_object().unwrap()) {
            let value = STANDARD.decode(value.as_str().unwrap()).unwrap();
            self.values.insert(String::from_utf8(value).unwrap());
        }
        self.values.retain(|value| value.len() > 8);
    }
}

fn printed(name: &str) -> String {
    fs::read_to_string(Path::new(EXAMPLE).join(name)).unwrap()
}

#[test]
fn the_walk_through_is_true() {
    let mut shop = Shop::copy();
    let mut answered = None;
    for block in blocks(&printed("README.md")) {
        match block {
            Block::Typed(typed) if typed.starts_with("./open-shop") => shop.open(),
            Block::Typed(typed) if typed.starts_with("cargo xtask example") => {}
            Block::Typed(typed) => {
                let (code, said) = shop.sh(&typed);
                println!("$ {typed}{said}");
                let ends = typed.split_once("# ends with ").map_or("0", |(_, code)| code.trim());
                assert_eq!(code.to_string(), ends, "{typed}:\n{said}");
                answered = Some(said);
            }
            Block::Answered(printed) => {
                compare(
                    &printed.replace(CONTEXT, ADMIN),
                    &answered.take().expect("something is typed before"),
                );
            }
            Block::Edited(diff) => {
                let text = fs::read_to_string(shop.config()).unwrap();
                fs::write(shop.config(), edited(&text, &diff)).unwrap();
            }
            Block::Elsewhere => panic!("everything is typed in this walk-through"),
        }
    }
    assert_eq!(shop.cluster.faults().disclosed(), []);
}
