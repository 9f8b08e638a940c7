//! Lines of a log, put together from the pieces in which they come. What is longer than a line should be is cut.

/// The most of a line that is looked at.
pub(crate) const LONGEST: usize = 64 * 1024;

/// A line that is not whole yet.
#[derive(Default)]
pub(crate) struct Line(Vec<u8>);

impl Line {
    /// Adds a piece, and hands on each line that it ends.
    pub(crate) fn add<E>(
        &mut self,
        piece: &[u8],
        take: &mut (impl FnMut(&str) -> Result<(), E> + ?Sized),
    ) -> Result<(), E> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let room = LONGEST.saturating_sub(self.0.len());
            self.0.extend(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                take(String::from_utf8_lossy(&self.0).trim_end())?;
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
        if self.0.is_empty() { Ok(()) } else { take(String::from_utf8_lossy(&self.0).trim_end()) }
    }
}
