//! What the tests of this issuer have in common: nodes with users, and what stands between them and keywheel.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keywheel_core::plan::Label;
use keywheel_core::secret::{Credential, Field, SecretValue};
use keywheel_core::time::Span;
use keywheel_core::version::IssuedId;
use keywheel_driver::conformance::canary;
use keywheel_driver::issuer::{Issuer, Mint};
use keywheel_driver::{CallError, Refusal, Severity};
use keywheel_ground::redis::{Redis, Settings, Users};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Config;
use super::acl::hash;
use super::sessions::property;
use crate::redis::{Link, Login, Node, Trouble};
use crate::{Build, Context};

/// What the guide gives the admin.
pub(super) const ADMIN_RULES: &str = "resetkeys -@all +acl +client|list +client|kill +client|id +config|get +config|rewrite +info +time +multi +exec +cluster|nodes";

/// Nodes with the users `keywheel`, `app` and `other`, and what is configured for them.
pub(super) struct World {
    pub(super) nodes: Vec<Redis>,
    pub(super) folder: TempDir,
    pub(super) admin: String,
    pub(super) first: String,
    pub(super) other: String,
}

impl World {
    /// Returns none, and says why, where Redis cannot be had.
    pub(super) fn start(nodes: usize) -> Option<Self> {
        Self::with(nodes, Users::File)
    }

    pub(super) fn with(nodes: usize, users: Users) -> Option<Self> {
        let mut world = Self {
            nodes: Vec::new(),
            folder: TempDir::new().unwrap(),
            admin: canary("redis-admin"),
            first: canary("redis-first"),
            other: canary("redis-other"),
        };
        std::fs::write(world.folder.path().join("admin"), &world.admin).unwrap();
        for _ in 0..nodes {
            let settings = Settings { users, lines: world.lines(), ..Settings::default() };
            world.nodes.push(started(&settings)?);
        }
        Some(world)
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let line = |user: &str, password: &str, rules: &str| {
            format!("user {user} on #{} {rules}", hash(&of(password)))
        };
        vec![
            "user default off".to_owned(),
            line("keywheel", &self.admin, ADMIN_RULES),
            line("app", &self.first, "~* &* +@all -acl -config"),
            line("other", &self.other, "~* &* +@all"),
        ]
    }

    pub(super) fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(Redis::port).collect()
    }

    pub(super) fn issuer(&self) -> Arc<dyn Issuer> {
        self.issuer_at(&self.ports())
    }

    pub(super) fn issuer_at(&self, ports: &[u16]) -> Arc<dyn Issuer> {
        self.build(json!({ "nodes": at(ports) })).unwrap_or_else(|e| panic!("{e}"))
    }

    pub(super) fn build(&self, changes: serde_json::Value) -> Result<Arc<dyn Issuer>, Refusal> {
        let mut config = json!({
            "nodes": at(&self.ports()),
            "user": "app",
            "admin": { "user": "keywheel", "password": { "file": "admin" } },
            "within": "2s",
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config: Config = serde_json::from_value(config).unwrap();
        config.build(&Context::at(self.folder.path()))
    }

    pub(super) async fn link(
        &self,
        node: usize,
        user: &str,
        password: &str,
    ) -> Result<Link, Trouble> {
        let address = format!("127.0.0.1:{}", self.nodes[node].port());
        let node = Node::new(&address, Some(false), None, Span::seconds(5)).unwrap();
        node.log_in(Some(&Login { user: Some(user), password: &of(password) })).await
    }

    /// Asks a node something as the admin.
    pub(super) async fn ask<T: redis::FromRedisValue>(&self, node: usize, words: &[&str]) -> T {
        let mut link = self.link(node, "keywheel", &self.admin).await.unwrap();
        link.ask(redis::cmd(words[0]).arg(&words[1..])).await.unwrap()
    }

    /// The version in use, as a mint is told it.
    pub(super) fn previous(&self) -> Option<(&str, &str)> {
        Some(("keywheel-before@app", &self.first))
    }

    pub(super) async fn accepts(&self, node: usize, user: &str, password: &str) -> bool {
        self.link(node, user, password).await.is_ok()
    }

    pub(super) async fn sessions(&self, node: usize) -> usize {
        let list: String = self.ask(node, &["CLIENT", "LIST"]).await;
        list.lines().filter(|line| property(line, "user") == Some("app")).count()
    }

    pub(super) async fn blocks(&self, issuer: &dyn Issuer) -> Vec<String> {
        let findings = issuer.preflight().await.unwrap_or_else(|e| panic!("{e}"));
        let blocks = findings.into_iter().filter(|one| one.severity == Severity::Blocks);
        blocks.map(|finding| finding.message).collect()
    }
}

pub(super) fn started(settings: &Settings) -> Option<Redis> {
    match Redis::start(settings) {
        Ok(redis) => Some(redis),
        Err(why) => {
            writeln!(std::io::stdout(), "skipped: Redis ({why})").unwrap();
            None
        }
    }
}

pub(super) fn at(ports: &[u16]) -> Vec<String> {
    ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
}

pub(super) fn of(password: &str) -> SecretValue {
    SecretValue::new(password.into())
}

pub(super) fn login(password: &str) -> Credential {
    Credential::default().with(Field::new("password"), of(password))
}

/// Mints a version with a value that is known to the test.
pub(super) async fn mint(
    issuer: &dyn Issuer,
    label: &str,
    value: &str,
    previous: Option<(&str, &str)>,
) -> Result<IssuedId, CallError> {
    let (label, value) = (Label(label.into()), login(value));
    let id = previous.map(|(id, _)| IssuedId::new(id));
    let in_use = previous.map(|(_, value)| login(value));
    let request = Mint {
        value: Some(&value),
        previous: id.as_ref(),
        in_use: in_use.as_ref(),
        ..Mint::new(&label)
    };
    Ok(issuer.mint(&request).await?.issued.expect("a version has an id"))
}

/// What stands between keywheel and a node, and can lose an answer, or say something of its own.
pub(super) struct Relay {
    pub(super) port: u16,
    pub(super) loses: Arc<AtomicBool>,
    pub(super) heard: Arc<std::sync::Mutex<Vec<u8>>>,
}

impl Relay {
    /// Passes everything on; once told to, it passes on the next question that adds a password, and no answer after it.
    pub(super) async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            port: listener.local_addr().unwrap().port(),
            loses: Arc::default(),
            heard: Arc::default(),
        };
        let (loses, heard) = (Arc::clone(&relay.loses), Arc::clone(&relay.heard));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                let (loses, heard) = (Arc::clone(&loses), Arc::clone(&heard));
                tokio::spawn(relayed(client, server, loses, heard));
            }
        });
        relay
    }
}

pub(super) async fn relayed(
    client: TcpStream,
    server: TcpStream,
    loses: Arc<AtomicBool>,
    heard: Arc<std::sync::Mutex<Vec<u8>>>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let is_lost = Arc::new(AtomicBool::new(false));
    let lost = Arc::clone(&is_lost);
    let back = async move {
        let mut buffer = [0; 16_384];
        while let Ok(size @ 1..) = from_server.read(&mut buffer).await {
            if !lost.load(Ordering::SeqCst) && to_client.write_all(&buffer[..size]).await.is_err() {
                return;
            }
        }
    };
    let forth = async move {
        let mut buffer = [0; 16_384];
        while let Ok(size @ 1..) = from_client.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..size]);
            if text.contains("SETUSER") && loses.swap(false, Ordering::SeqCst) {
                is_lost.store(true, Ordering::SeqCst);
            }
            heard.lock().unwrap().extend_from_slice(&buffer[..size]);
            if to_server.write_all(&buffer[..size]).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(back, forth);
}

/// A server that answers every question with the same line, in which `<said>` is what it was sent.
pub(super) async fn answers_always(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 16_384];
                while let Ok(size @ 1..) = client.read(&mut buffer).await {
                    let said = String::from_utf8_lossy(&buffer[..size]);
                    let said = said.replace("\r\n", " ");
                    let line = answer.replace("<said>", &said) + "\r\n";
                    if client.write_all(line.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}
