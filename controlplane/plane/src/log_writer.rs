//! The writer of log lines: to stderr, with nothing in them that begins a line or speaks to the terminal.

use std::io::{Result, Write};

use flatnet_model::text::{is_shown, json};
use tracing_subscriber::fmt::MakeWriter;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// Text, with colours of our own or without.
    Text {
        /// True if lines are coloured.
        colours: bool,
    },
    /// A JSON object for each event.
    Json,
}

impl Lines {
    /// Returns one event in the form in which it is written.
    fn clean(self, event: &str) -> String {
        let body = event.strip_suffix('\n').unwrap_or(event);
        if self == Self::Json {
            return json(body).replace('\n', "\\n") + "\n";
        }
        let mut out = String::with_capacity(event.len());
        let mut rest = body;
        while let Some(c) = rest.chars().next() {
            let colour = if self == (Self::Text { colours: true }) { colour(rest) } else { 0 };
            if colour > 0 {
                out.push_str(&rest[..colour]);
                rest = &rest[colour..];
                continue;
            }
            match c {
                '\n' => out.push_str("\\n"),
                c if is_shown(c) => out.push(c),
                _ => out.push('\u{fffd}'),
            }
            rest = &rest[c.len_utf8()..];
        }
        out.push('\n');
        out
    }
}

/// Returns the length of the colour (ECMA-48's SGR) that `text` begins with; 0: none.
fn colour(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\u{1b}[") else { return 0 };
    let parameters = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
    if rest.as_bytes().get(parameters) == Some(&b'm') { 2 + parameters + 1 } else { 0 }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event { lines: *self, bytes: Vec::new() }
    }
}

/// One event on its way; written when it is whole.
#[derive(Debug)]
pub struct Event {
    lines: Lines,
    bytes: Vec<u8>,
}

impl Write for Event {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            let text = self.lines.clean(&String::from_utf8_lossy(&self.bytes));
            // When stderr is closed, nobody is left to tell.
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use flatnet_model::text::HOSTILE;

    use super::*;

    #[test]
    fn whatever_is_logged_is_one_line_and_speaks_to_no_terminal() {
        for hostile in HOSTILE {
            for lines in [Lines::Text { colours: false }, Lines::Json] {
                let written = lines.clean(&format!("WARN {hostile}\n"));
                assert!(written.ends_with('\n') && written.lines().count() == 1, "{written:?}");
                assert!(written.trim_end_matches('\n').chars().all(is_shown), "{written:?}");
            }
        }
        let coloured = "\u{1b}[33m WARN\u{1b}[0m \u{1b}]0;x\u{7}\n";
        let written = Lines::Text { colours: true }.clean(coloured);
        assert_eq!(written, "\u{1b}[33m WARN\u{1b}[0m \u{fffd}]0;x\u{fffd}\n");
    }
}
