//! What the PostHog twin remembers: project secret keys, the tokens of its one project with their past, events, and who did what.

use std::collections::BTreeMap;

use super::TwinOptions;
use crate::life::{Life, millis};
use crate::{now, random};

const BASE62: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Everything, behind the lock of the twin. Nothing is ever forgotten: what ended has a time at which it did.
pub(super) struct State {
    pub(super) options: TwinOptions,
    pub(super) personal: String,
    pub(super) scopes: Vec<String>,
    pub(super) keys: BTreeMap<String, Key>,
    /// Every project token that there ever was; the last one is in use.
    pub(super) project_tokens: Vec<Token>,
    pub(super) primary: Token,
    pub(super) backup: Option<Token>,
    /// Team secret tokens that are neither primary nor backup any more.
    pub(super) former: Vec<Token>,
    pub(super) events: Vec<(String, i64)>,
    pub(super) log: Vec<Activity>,
    order: u64,
}

/// One row of the activity log.
pub(super) struct Activity {
    pub(super) scope: &'static str,
    pub(super) item: String,
    pub(super) activity: &'static str,
    /// What was changed, with what it was and became, as far as the log shows values.
    pub(super) changes: Vec<(&'static str, String, String)>,
    pub(super) name: String,
    pub(super) by: By,
    pub(super) at: i64,
}

/// Who did something.
#[derive(Clone, Copy)]
pub(super) enum By {
    /// The holder of the personal key.
    Key,
    /// A person in the settings of the project.
    Person,
}

/// A project secret key.
pub(super) struct Key {
    pub(super) id: String,
    pub(super) label: String,
    pub(super) value: String,
    pub(super) scopes: Vec<String>,
    pub(super) life: Life,
    pub(super) last_used: Option<i64>,
}

pub(super) struct Token {
    pub(super) value: String,
    pub(super) life: Life,
}

/// The tokens of the project, as a look shows them.
pub(super) struct ShownTokens<'a> {
    pub(super) project: Option<&'a str>,
    pub(super) primary: Option<&'a str>,
    pub(super) backup: Option<&'a str>,
}

/// What a presented value may do here.
pub(super) enum Standing {
    /// The personal key.
    Personal,
    /// A project secret key, by its id.
    Key(String),
    /// A secret token of the team.
    Team,
    Nothing,
}

impl State {
    pub(super) fn new(options: TwinOptions) -> Self {
        let mut order = 0;
        let personal = options.personal_key.clone().unwrap_or_else(|| value("phx_"));
        let scopes = [
            "project:read",
            "project_secret_api_key:read",
            "project_secret_api_key:write",
            "query:read",
        ];
        Self {
            options,
            personal,
            scopes: scopes.map(str::to_owned).to_vec(),
            keys: BTreeMap::new(),
            project_tokens: vec![token("phc_", &mut order)],
            primary: token("phs_", &mut order),
            backup: None,
            former: Vec::new(),
            events: Vec::new(),
            log: Vec::new(),
            order,
        }
    }

    pub(super) fn add(&mut self, label: &str, scopes: Vec<String>, by: By) -> String {
        let life = Life::begin(&mut self.order);
        let id = random(BASE62, 12);
        let key = Key {
            id: id.clone(),
            label: label.into(),
            value: value("phs_"),
            scopes,
            life,
            last_used: None,
        };
        self.keys.insert(id.clone(), key);
        self.note_of_key("created", &id, by);
        id
    }

    /// Deletes a key; none where it is not there.
    pub(super) fn delete(&mut self, id: &str, by: By) -> Option<()> {
        self.live(id)?.life.end();
        self.note_of_key("deleted", id, by);
        Some(())
    }

    fn note_of_key(&mut self, activity: &'static str, id: &str, by: By) {
        self.log.push(Activity {
            scope: "ProjectSecretAPIKey",
            item: id.into(),
            activity,
            changes: Vec::new(),
            name: self.keys[id].label.clone(),
            by,
            at: now(),
        });
    }

    /// Notes that a person changed a token of the project.
    pub(super) fn note_of_token(&mut self, field: &'static str, before: &str, after: &str) {
        self.log.push(Activity {
            scope: "Team",
            item: super::PROJECT.into(),
            activity: "updated",
            changes: vec![(field, before.into(), after.into())],
            name: "shop".into(),
            by: By::Person,
            at: now(),
        });
    }

    /// Returns the keys that a look at this time shows, in order.
    pub(super) fn keys_at(&self, time: i64) -> Vec<&Key> {
        let mut shown: Vec<_> = self.keys.values().filter(|key| key.life.shows_at(time)).collect();
        shown.sort_by_key(|key| key.life.order);
        shown
    }

    pub(super) fn live(&mut self, id: &str) -> Option<&mut Key> {
        self.keys.get_mut(id).filter(|key| key.life.ended.is_none())
    }

    /// Returns the tokens that a look at this time shows.
    pub(super) fn tokens_at(&self, time: i64) -> ShownTokens<'_> {
        let shows = |token: &&Token| token.life.shows_at(time);
        let mut secret: Vec<&Token> =
            self.former.iter().chain(&self.backup).chain([&self.primary]).filter(shows).collect();
        secret.sort_by_key(|token| token.life.order);
        let mut newest_first = secret.into_iter().rev().map(|token| token.value.as_str());
        ShownTokens {
            project: self.project_tokens.iter().rfind(shows).map(|token| token.value.as_str()),
            primary: newest_first.next(),
            backup: newest_first.next(),
        }
    }

    /// Gives the project another token; the one before it is refused from now on.
    pub(super) fn reset_token(&mut self) {
        self.project_tokens.iter_mut().for_each(|token| token.life.end());
        self.project_tokens.push(token("phc_", &mut self.order));
    }

    /// Gives the team another secret token; the one before it becomes the backup, and the backup before it is refused.
    pub(super) fn rotate_secret_token(&mut self) {
        self.delete_backup();
        let next = token("phs_", &mut self.order);
        self.backup = Some(std::mem::replace(&mut self.primary, next));
    }

    pub(super) fn delete_backup(&mut self) {
        let mut backup = self.backup.take();
        backup.iter_mut().for_each(|token| token.life.end());
        self.former.extend(backup);
    }

    /// Returns what a value may do at this moment, with new and revoked ones taking their time to be known.
    pub(super) fn standing(&self, value: &str) -> Standing {
        if value == self.personal {
            return Standing::Personal;
        }
        let key = self.keys.values().find(|key| key.value == value && self.is_known(&key.life));
        let team = [&self.primary].into_iter().chain(&self.backup).chain(&self.former);
        let mut team = team.filter(|token| token.value == value && self.is_known(&token.life));
        match (key, team.next()) {
            (Some(key), _) => Standing::Key(key.id.clone()),
            (None, Some(_)) => Standing::Team,
            (None, None) => Standing::Nothing,
        }
    }

    /// Returns whether `/flags` takes a project token at this moment.
    pub(super) fn is_project_token(&self, value: &str) -> bool {
        self.project_tokens.iter().any(|token| token.value == value && self.is_known(&token.life))
    }

    fn is_known(&self, life: &Life) -> bool {
        let now = now();
        let from = life.created + millis(self.options.propagation);
        let until = life.ended.map(|ended| ended + millis(self.options.revocation));
        from <= now && until.is_none_or(|until| now < until)
    }
}

/// Shows the ends of a value, as the lists do.
pub(super) fn masked(value: &str) -> String {
    format!("{}...{}", &value[..4], &value[value.len() - 4..])
}

fn token(prefix: &str, order: &mut u64) -> Token {
    // What was there before the twin began is known everywhere.
    let mut life = Life::begin(order);
    if *order <= 2 {
        life.created = 0;
    }
    Token { value: value(prefix), life }
}

/// Makes a value in the shape of the real ones.
fn value(prefix: &str) -> String {
    format!("{prefix}{}", random(BASE62, 43))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_rotation_ends_the_token_before_the_last() {
        let mut state = State::new(TwinOptions::default());
        let opens = |state: &State, value: &str| matches!(state.standing(value), Standing::Team);
        let first = state.primary.value.clone();
        state.rotate_secret_token();
        let second = state.primary.value.clone();
        assert!(opens(&state, &first) && opens(&state, &second));
        state.rotate_secret_token();
        assert!(!opens(&state, &first) && opens(&state, &second));
        state.delete_backup();
        assert!(!opens(&state, &second) && opens(&state, &state.primary.value));
    }

    #[test]
    fn a_reset_leaves_no_overlap() {
        let mut state = State::new(TwinOptions::default());
        let first = state.project_tokens[0].value.clone();
        state.reset_token();
        assert!(!state.is_project_token(&first));
        assert!(state.is_project_token(&state.project_tokens[1].value));
    }

    #[test]
    fn a_look_from_before_a_change_shows_the_tokens_as_they_were() {
        let mut state = State::new(TwinOptions::default());
        let (project, secret) =
            (state.project_tokens[0].value.clone(), state.primary.value.clone());
        state.reset_token();
        state.rotate_secret_token();
        let before = state.tokens_at(1);
        assert_eq!((before.project, before.primary), (Some(&*project), Some(&*secret)));
        assert_eq!(before.backup, None);
        let now = state.tokens_at(now());
        assert_eq!(now.project, Some(&*state.project_tokens[1].value));
        assert_eq!((now.primary, now.backup), (Some(&*state.primary.value), Some(&*secret)));
    }
}
