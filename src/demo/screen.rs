//! A picture on a terminal that is drawn over in place, and log lines that do not break it.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const CLEAR_BELOW: &str = "\x1b[J";
/// A terminal that does not say how large it is.
const SIZE_UNKNOWN: (usize, usize) = (80, 24);

#[derive(Debug, Default)]
struct State {
    /// The widths of the lines of the picture that stands above the cursor.
    lines: Vec<usize>,
    hidden: bool,
}

/// The terminal on stdout. Cloning shares it. The log keeps a clone to the end of the process, so that the last drop
/// never comes: hold a [`Restore`].
#[derive(Clone, Debug, Default)]
pub struct Screen(Arc<Mutex<State>>);

impl Screen {
    /// Whether stdout is a terminal that can be drawn on.
    pub fn is_there() -> bool {
        io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    /// Columns and lines.
    pub fn size() -> (usize, usize) {
        match terminal_size::terminal_size() {
            Some((terminal_size::Width(columns), terminal_size::Height(lines))) if columns > 0 && lines > 0 => {
                (columns.into(), lines.into())
            }
            _ => SIZE_UNKNOWN,
        }
    }

    /// Draws a picture over the last one. Lines that the terminal has no room for are left out.
    ///
    /// # Errors
    /// When stdout does not take it.
    pub fn draw(&self, picture: &[String]) -> io::Result<()> {
        let (_, height) = Self::size();
        let shown = &picture[..picture.len().min(height.saturating_sub(1))];
        let mut state = self.lock();
        let mut text = erase(&mut state);
        if !std::mem::replace(&mut state.hidden, true) {
            text.push_str(HIDE_CURSOR);
        }
        for line in shown {
            text.push_str(line);
            text.push('\n');
        }
        state.lines = shown.iter().map(|line| line.chars().count()).collect();
        put(&text)
    }

    /// Leaves the last picture where it is, and shows the cursor.
    ///
    /// # Errors
    /// When stdout does not take it.
    pub fn leave(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.lines.clear();
        if std::mem::take(&mut state.hidden) { put(SHOW_CURSOR) } else { Ok(()) }
    }

    /// Writes log lines to stderr, in the picture's place; the next picture comes below.
    fn log(&self, lines: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        if !state.lines.is_empty() && io::stderr().is_terminal() {
            let erase = erase(&mut state);
            put(&erase)?;
        }
        io::stderr().write_all(lines)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves to where the picture begins and clears from there.
fn erase(state: &mut State) -> String {
    match height(&std::mem::take(&mut state.lines), Screen::size().0) {
        0 => String::new(),
        rows => format!("\x1b[{rows}F{CLEAR_BELOW}"),
    }
}

/// The rows that lines of these widths take: a terminal that was made narrower has wrapped them.
fn height(widths: &[usize], columns: usize) -> usize {
    widths.iter().map(|width| width.div_ceil(columns).max(1)).sum()
}

fn put(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Leaves the screen when dropped: however the demo ends, by an error, a panic or a second signal too.
#[derive(Debug)]
pub struct Restore(pub Screen);

impl Drop for Restore {
    fn drop(&mut self) {
        // The terminal may be gone; there is no one left to tell.
        let _ = self.0.leave();
    }
}

impl Write for Screen {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.log(lines).map(|()| lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_were_wrapped_take_more_rows() {
        assert_eq!(height(&[], 80), 0);
        assert_eq!(height(&[0, 79, 80], 80), 3);
        assert_eq!(height(&[0, 79, 80], 40), 1 + 2 + 2);
        assert_eq!(height(&[81], 80), 2);
    }
}
