//! Lines of a log, put together from the pieces in which they come. What is longer than a line should be is cut.
//!
//! A line may hold what nobody should read, so it is kept in memory that is overwritten.

use std::borrow::Cow;

use zeroize::Zeroizing;

/// The most of a line that is looked at.
pub(crate) const LONGEST: usize = 64 * 1024;

/// A line that is not whole yet.
pub(crate) struct Line(Zeroizing<Vec<u8>>);

impl Default for Line {
    /// There is room for all of it from the start: a buffer that grows leaves copies behind.
    fn default() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(LONGEST)))
    }
}

impl Line {
    /// Adds a piece, and hands on each line that it ends.
    pub(crate) fn add<E>(
        &mut self,
        piece: &[u8],
        take: &mut (impl FnMut(&str) -> Result<(), E> + ?Sized),
    ) -> Result<(), E> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let room = LONGEST.saturating_sub(self.0.len());
            self.0.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.hand_on(take)?;
                self.0.clear();
            }
        }
        Ok(())
    }

    /// Hands on what came after the last end of a line.
    pub(crate) fn end<E>(
        &self,
        take: &mut (impl FnMut(&str) -> Result<(), E> + ?Sized),
    ) -> Result<(), E> {
        if self.0.is_empty() { Ok(()) } else { self.hand_on(take) }
    }

    fn hand_on<E>(&self, take: &mut (impl FnMut(&str) -> Result<(), E> + ?Sized)) -> Result<(), E> {
        match String::from_utf8_lossy(&self.0) {
            Cow::Borrowed(text) => take(text.trim_end()),
            Cow::Owned(text) => take(Zeroizing::new(text).trim_end()),
        }
    }
}
