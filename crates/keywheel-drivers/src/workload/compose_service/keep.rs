//! Copies of the logs of containers that a roll removes: for those whose log goes with them.
//!
//! A copy is for its owner only, and a copy that is broken off is made anew as long as the container is there. It takes
//! no space that the journal may need.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use keywheel_core::time::{Span, Timestamp};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use rustix::fs::OFlags;

use super::engine::{Container, Engine};
use crate::workload::clock;

/// The space that is left free where copies are written.
const RESERVE: u64 = 64 << 20;

/// How much is written between two looks at the free space.
const LOOK_AFTER: u64 = 1 << 20;

/// How long a line may take from the container to its log.
const UNDER_WAY: Span = Span::seconds(1);

/// The folder of the copies.
pub(super) struct Keep {
    folder: PathBuf,
}

/// A copy that ends where the container still ran.
pub(super) struct Begun {
    copy: Copy,
    until: Timestamp,
}

impl Keep {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Returns the file for a container: its name, and enough of its id to tell it from those of the same name.
    pub(super) fn file(&self, container: &Container) -> PathBuf {
        let id = container.id.get(..12).unwrap_or(&container.id);
        self.folder.join(format!("{}-{id}.log", container.name))
    }

    /// Says what speaks against the folder; changes nothing.
    pub(super) fn obstacle(&self) -> Option<String> {
        let found = match std::fs::symlink_metadata(&self.folder) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return Some(format!("cannot be used: {}", error.kind())),
        };
        if !found.is_dir() {
            return Some("is no folder".into());
        }
        (found.mode() & 0o077 != 0).then(|| "can be read by others: `chmod 700` it".into())
    }

    /// Copies what a container wrote since it was made, while it may still write more.
    pub(super) async fn begin(
        &self,
        engine: &Engine,
        container: &Container,
    ) -> Result<Begun, CallError> {
        let mut copy = self.make(container).map_err(|error| self.failed(container, &error))?;
        let until = clock::now() - UNDER_WAY;
        let since = container.created.unwrap_or_default();
        self.copy(engine, container, since..until, &mut copy).await?;
        copy.file.flush().map_err(|error| self.failed(container, &error))?;
        Ok(Begun { copy, until })
    }

    /// Copies the rest, once the container writes nothing more. The copy is on the disk then.
    pub(super) async fn finish(
        &self,
        engine: &Engine,
        container: &Container,
        Begun { mut copy, until }: Begun,
    ) -> Result<(), CallError> {
        let end = clock::now() + UNDER_WAY;
        self.copy(engine, container, until..end, &mut copy).await?;
        Ok(copy.sync(&self.folder).map_err(|error| self.failed(container, &error))?)
    }

    async fn copy(
        &self,
        engine: &Engine,
        container: &Container,
        range: Range<Timestamp>,
        copy: &mut Copy,
    ) -> Result<(), CallError> {
        let mut take = |line: &str| {
            copy.line(line).map_err(|error| CallError::from(self.failed(container, &error)))
        };
        engine.logs(&container.id, &range, &mut take).await
    }

    fn make(&self, container: &Container) -> io::Result<Copy> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        if let Some(why) = self.obstacle() {
            return Err(io::Error::other(why));
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        Copy::into(options.open(self.file(container))?)
    }

    fn failed(&self, container: &Container, error: &io::Error) -> Refusal {
        let why = match error.get_ref() {
            Some(words) => words.to_string(),
            None => error.kind().to_string(),
        };
        let message = format!(
            "the log of container `{}` is not kept: folder `{}`: {why}",
            container.name,
            self.folder.display()
        );
        Refusal::operator(RefusalKind::Local, message)
    }
}

struct Copy {
    file: BufWriter<File>,
    left: u64,
}

impl Copy {
    fn into(file: File) -> io::Result<Self> {
        let mut copy = Self { file: BufWriter::new(file), left: 0 };
        copy.look()?;
        Ok(copy)
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")?;
        self.left = self.left.saturating_sub(line.len() as u64 + 1);
        if self.left == 0 { self.look() } else { Ok(()) }
    }

    fn look(&mut self) -> io::Result<()> {
        let space = rustix::fs::fstatvfs(self.file.get_ref())?;
        if space.f_bavail.saturating_mul(space.f_frsize) < RESERVE {
            return Err(io::Error::other("less than 64 MiB of space is left"));
        }
        self.left = LOOK_AFTER;
        Ok(())
    }

    fn sync(mut self, folder: &Path) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        File::open(folder)?.sync_all()
    }
}
