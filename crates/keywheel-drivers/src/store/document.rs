//! What a secret of a cloud's secret manager holds: one text, or a JSON object whose members are slots.

use std::collections::BTreeSet;

use keywheel_core::secret::SecretValue;
use keywheel_driver::RefusalKind;
use keywheel_driver::store::Edit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::json_object::{self, Unfit};
use crate::secret_json;

/// The one slot of a secret that is one text.
pub(super) const CONTENT: &str = "content";

/// The longest payload that AWS and Google take, in bytes.
pub(super) const LARGEST: usize = 65_536;

/// What a secret holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One value and nothing else; its one slot is `content`.
    Text,
    /// A JSON object; a slot is a member of it that holds a text.
    Json,
}

/// Why slots cannot be read or written: the kind of the refusal, and words that name slots and hold no value.
pub(super) type Bad = (RefusalKind, String);

/// How one service keeps documents.
#[derive(Clone, Copy)]
pub(super) struct Document {
    /// What it holds.
    pub(super) format: Format,
    /// Whether a text must be UTF-8.
    pub(super) only_utf8: bool,
    /// What always holds something there, in a sentence.
    pub(super) kept: &'static str,
}

impl Document {
    /// Returns the addresses of all slots of a document.
    pub(super) fn addresses(self, held: &SecretValue) -> Result<Vec<String>, Bad> {
        match self.format {
            Format::Text => Ok(vec![CONTENT.into()]),
            Format::Json => json_object::names(held).map_err(unfit),
        }
    }

    /// Reads one slot; none where it is absent.
    pub(super) fn slot(
        self,
        held: Option<&SecretValue>,
        address: &str,
    ) -> Result<Option<SecretValue>, Bad> {
        match (self.format, held) {
            (Format::Text, _) if address != CONTENT => {
                Err(unsupported(format!("it is one text, and its one slot is `{CONTENT}`")))
            }
            (_, None) => Ok(None),
            (Format::Text, Some(held)) => Ok(Some(held.duplicate())),
            (Format::Json, Some(held)) => json_object::read(held, address).map_err(unfit),
        }
    }

    /// Applies all edits, or none; returns nothing where there is nothing to write.
    pub(super) fn edited(
        self,
        held: Option<&SecretValue>,
        edits: &[Edit<'_>],
    ) -> Result<Option<SecretValue>, Bad> {
        let mut names = BTreeSet::new();
        let mut due = Vec::new();
        for edit in edits {
            let present = self.slot(held, edit.address)?;
            if !names.insert(edit.address) {
                return Err(unsupported(format!("two edits name `{}`", edit.address)));
            }
            if !edit.accepts(present.as_ref()) {
                let why = format!("`{}` holds something else than expected", edit.address);
                return Err((RefusalKind::Conflict, why));
            }
            due.extend(edit.changes(present.as_ref()).then_some(edit));
        }
        if due.is_empty() {
            return Ok(None);
        }
        let mut new = held.map_or_else(|| SecretValue::new(b"{}".to_vec()), SecretValue::duplicate);
        for edit in due {
            new = self.applied(&new, edit)?;
        }
        match new.expose().len() {
            1..=LARGEST => Ok(Some(new)),
            size => Err(unsupported(format!("it would have {size} bytes; 1 to {LARGEST} can be"))),
        }
    }

    fn applied(self, held: &SecretValue, edit: &Edit<'_>) -> Result<SecretValue, Bad> {
        match (self.format, edit.value) {
            (Format::Json, Some(value)) => {
                json_object::set(held, edit.address, value).map_err(unfit)
            }
            (Format::Json, None) => json_object::remove(held, edit.address).map_err(unfit),
            (Format::Text, Some(value)) if self.only_utf8 && secret_json::text(value).is_none() => {
                Err(unfit(Unfit::NotUtf8(edit.address.into())))
            }
            (Format::Text, Some(value)) => Ok(value.duplicate()),
            (Format::Text, None) => Err(unsupported(format!(
                "a {} always holds something, so that its one slot cannot be empty again",
                self.kept
            ))),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it maps errors")]
fn unfit(why: Unfit) -> Bad {
    unsupported(why.to_string())
}

fn unsupported(why: String) -> Bad {
    (RefusalKind::Unsupported, why)
}
