//! Users and their access keys.

use std::time::Duration;

use super::signature::Caller;
use super::{Failure, Key, KeyState, TwinOptions, failure, parameter};
use crate::life::{Life, Switch, rfc3339};
use crate::{now, random};

/// How many keys a user may have.
const MOST: usize = 2;

pub(super) struct Keys {
    options: TwinOptions,
    order: u64,
    users: Vec<String>,
    keys: Vec<Held>,
}

/// A key with its life.
pub(super) struct Held {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) user: String,
    /// Whose a session is, and the token that goes with it; a key of a user has none.
    pub(super) session: Option<Session>,
    life: Life,
    switch: Switch,
    /// Whether it is known to live, which its deletion ends.
    lives: Switch,
    used: Option<i64>,
}

/// A session: a key for a while.
pub(super) struct Session {
    pub(super) arn: String,
    pub(super) token: String,
}

impl Held {
    fn end(&mut self) {
        self.life.end();
        self.lives.set(false);
    }
}

impl Keys {
    pub(super) fn new(options: TwinOptions) -> Self {
        Self { options, order: 0, users: Vec::new(), keys: Vec::new() }
    }

    pub(super) fn make_user(&mut self, user: &str) {
        if !self.users.iter().any(|known| known == user) {
            self.users.push(user.into());
        }
    }

    /// Makes a key that every service knows at once.
    pub(super) fn make(&mut self, user: &str) -> Key {
        self.make_user(user);
        let made = self.add(user);
        let held = self.keys.last_mut().expect("it was made");
        held.switch = Switch::on_since_long();
        made
    }

    /// Begins a session of whom the ARN names.
    pub(super) fn begin_session(&mut self, arn: &str) -> (Key, String) {
        let Key { id, secret } = self.add("");
        let held = self.keys.last_mut().expect("it was made");
        let token = random(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 60);
        let id = id.replacen("AKIA", "ASIA", 1);
        (held.id, held.switch) = (id.clone(), Switch::on_since_long());
        held.session = Some(Session { arn: arn.into(), token: token.clone() });
        (Key { id, secret }, token)
    }

    fn add(&mut self, user: &str) -> Key {
        let id = format!("AKIA{}", random(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16));
        // Most of a real one's characters; two of them need an encoding in a URL.
        let secret =
            random(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 40);
        self.keys.push(Held {
            id: id.clone(),
            secret: secret.clone(),
            user: user.into(),
            session: None,
            life: Life::begin(&mut self.order),
            switch: Switch::on(),
            lives: Switch::on_since_long(),
            used: None,
        });
        Key { id, secret }
    }

    pub(super) fn of(&self, user: &str) -> Vec<KeyState> {
        let keys = self.keys.iter().filter(|key| key.user == user);
        keys.map(|key| KeyState {
            id: key.id.clone(),
            live: key.life.ended.is_none(),
            active: key.switch.is_on(),
        })
        .collect()
    }

    pub(super) fn end(&mut self, id: &str) {
        self.keys.iter_mut().filter(|key| key.id == id).for_each(Held::end);
    }

    pub(super) fn used(&mut self, id: &str, ago: Duration) {
        let at = now() - crate::life::millis(ago);
        self.keys.iter_mut().filter(|key| key.id == id).for_each(|key| key.used = Some(at));
    }

    /// Returns a key that opens something at this moment.
    pub(super) fn accepted(&self, id: &str) -> Option<&Held> {
        let TwinOptions { propagation, revocation, .. } = self.options;
        self.keys.iter().find(|key| {
            key.id == id
                && key.switch.is_known_on(propagation, revocation)
                && key.lives.is_known_on(Duration::ZERO, revocation)
        })
    }

    pub(super) fn answer(
        &mut self,
        operation: &str,
        caller: &Caller,
        body: &[u8],
    ) -> Result<String, Failure> {
        let given = |name: &str| parameter(body, name);
        if operation == "GetCallerIdentity" {
            return Ok(format!(
                "<Arn>{}</Arn><UserId>AIDA{}</UserId><Account>123456789012</Account>",
                caller.arn, caller.key
            ));
        }
        if operation == "AssumeRole" {
            return Ok(self.assumed(&given("RoleArn").unwrap_or_default()));
        }
        if operation == "GetAccessKeyLastUsed" {
            return self.last_used(&given("AccessKeyId").unwrap_or_default());
        }
        let user = given("UserName").unwrap_or_else(|| caller.user.clone());
        // Names are told apart without their case, and shown with the one that they were made with.
        let known = self.users.iter().find(|known| known.eq_ignore_ascii_case(&user)).cloned();
        let user = known.ok_or_else(|| {
            let message = format!("The user with name {user} cannot be found.");
            failure(404, "NoSuchEntity", message)
        })?;
        match operation {
            "CreateAccessKey" => self.create(&user),
            "ListAccessKeys" => self.list(&user, given("Marker")),
            "UpdateAccessKey" => {
                let on = given("Status").as_deref() == Some("Active");
                self.live(&user, given("AccessKeyId"))?.switch.set(on);
                Ok(String::new())
            }
            _ => {
                self.live(&user, given("AccessKeyId"))?.end();
                Ok(String::new())
            }
        }
    }

    fn assumed(&mut self, role: &str) -> String {
        let arn = format!(
            "{}/session",
            role.replacen(":iam:", ":sts:", 1).replacen(":role/", ":assumed-role/", 1)
        );
        let (Key { id, secret }, token) = self.begin_session(&arn);
        let ends = rfc3339(now() + crate::life::millis(Duration::from_secs(3_600)));
        format!(
            "<Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{ends}</Expiration></Credentials><AssumedRoleUser><Arn>{arn}</Arn><AssumedRoleId>AROA:session</AssumedRoleId></AssumedRoleUser>"
        )
    }

    fn create(&mut self, user: &str) -> Result<String, Failure> {
        let live = self.of(user).into_iter().filter(|key| key.live).count();
        if live >= MOST {
            let message = "Cannot exceed quota for AccessKeysPerUser: 2";
            return Err(failure(409, "LimitExceeded", message));
        }
        let Key { id, secret } = self.add(user);
        let created = rfc3339(now());
        Ok(format!(
            "<AccessKey><UserName>{user}</UserName><AccessKeyId>{id}</AccessKeyId><Status>Active</Status><SecretAccessKey>{secret}</SecretAccessKey><CreateDate>{created}</CreateDate></AccessKey>"
        ))
    }

    fn list(&self, user: &str, marker: Option<String>) -> Result<String, Failure> {
        let live: Vec<_> =
            self.keys.iter().filter(|key| key.user == user && key.life.ended.is_none()).collect();
        let from = marker.and_then(|marker| marker.parse().ok()).unwrap_or(0);
        let to = live.len().min(from + self.options.page.unwrap_or(100));
        let members = live[from.min(to)..to].iter().map(|key| {
            let status = if key.switch.is_on() { "Active" } else { "Inactive" };
            let (id, created) = (&key.id, rfc3339(key.life.created));
            format!("<member><UserName>{user}</UserName><AccessKeyId>{id}</AccessKeyId><Status>{status}</Status><CreateDate>{created}</CreateDate></member>")
        });
        let members: String = members.collect();
        let rest = match to < live.len() {
            true => format!("<IsTruncated>true</IsTruncated><Marker>{to}</Marker>"),
            false => "<IsTruncated>false</IsTruncated>".to_owned(),
        };
        Ok(format!("<AccessKeyMetadata>{members}</AccessKeyMetadata>{rest}"))
    }

    /// A key that is nobody's is told as one that may not be asked about.
    fn last_used(&self, id: &str) -> Result<String, Failure> {
        let key = self.keys.iter().find(|key| key.id == id && key.life.ended.is_none());
        let key = key.ok_or_else(|| {
            failure(403, "AccessDenied", "not authorized to perform: iam:GetAccessKeyLastUsed")
        })?;
        let used = match key.used {
            Some(at) => format!(
                "<LastUsedDate>{}</LastUsedDate><ServiceName>s3</ServiceName><Region>eu-west-1</Region>",
                rfc3339(at)
            ),
            None => "<ServiceName>N/A</ServiceName><Region>N/A</Region>".to_owned(),
        };
        let user = &key.user;
        Ok(format!("<UserName>{user}</UserName><AccessKeyLastUsed>{used}</AccessKeyLastUsed>"))
    }

    fn live(&mut self, user: &str, id: Option<String>) -> Result<&mut Held, Failure> {
        let id = id.unwrap_or_default();
        let mut keys = self.keys.iter_mut();
        let key = keys.find(|key| key.id == id && key.user == user && key.life.ended.is_none());
        key.ok_or_else(|| {
            failure(404, "NoSuchEntity", format!("The Access Key with id {id} cannot be found."))
        })
    }
}
