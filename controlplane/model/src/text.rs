//! Escapes text of others on its way to a terminal or a log: only visible characters are written as they are.
//!
//! Anybody who writes the store, answers in a server's place or names a node chooses text that people read. Control
//! characters move the cursor, retitle the window or begin a line of their own; directional ones and those without a
//! width make a line read as what it is not.

/// The replacement for a character that is not shown.
const REPLACEMENT: char = '\u{fffd}';

/// Returns true if `c` is shown as what it is: no control, direction, separator of lines, joiner, filler, tag or
/// selector (Unicode's Cc, Cf, Zl, Zp and the default ignorables).
#[must_use]
pub fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{115f}' | '\u{1160}'
            | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Escapes `text` as a part of one line.
#[must_use]
pub fn line(text: &str) -> String {
    text.chars().map(|c| if is_shown(c) { c } else { REPLACEMENT }).collect()
}

/// Cuts `text` to what may stand in an error or a log line: hostile input is never printed whole.
#[must_use]
pub fn excerpt(text: &str) -> String {
    /// Characters kept: enough to recognise any key or address we write, too few to flood a log.
    const LIMIT: usize = 80;
    let mut out = line(&text.chars().take(LIMIT).collect::<String>());
    if text.chars().nth(LIMIT).is_some() {
        out.push('…');
    }
    out
}

/// Escapes `text` of several lines, made of parts that are lines already.
#[must_use]
pub fn lines(text: &str) -> String {
    text.chars().map(|c| if is_shown(c) || c == '\n' { c } else { REPLACEMENT }).collect()
}

/// Sets in `text` after the beginning of a line: what follows its own line breaks is indented, so that it begins no
/// line.
#[must_use]
pub fn set_in(text: &str) -> String {
    lines(text.trim_end_matches('\n')).replace('\n', "\n    ")
}

/// Returns a JSON document that says the same with escapes.
#[must_use]
pub fn json(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        if is_shown(c) || c == '\n' {
            out.push(c);
        } else {
            // None of these characters occurs outside of the document's strings.
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}

/// Hostile texts, for tests.
#[doc(hidden)]
pub const HOSTILE: [&str; 14] = [
    "\u{1b}]0;owned\u{7}",
    "\u{1b}[2J\u{1b}[1;1H",
    "a\nerror: forged",
    "a\r\nforged",
    "a\u{85}b",
    "\u{9b}31m",
    "\0",
    "\u{7f}",
    "\u{202e}gpj.exe",
    "\u{2066}x\u{2069}",
    "zero\u{200b}width\u{feff}\u{2060}",
    "a\u{2028}b\u{2029}c",
    "\u{ad}\u{61c}\u{180e}\u{3164}",
    "\u{e0041}\u{fe0f}",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hostile_is_shown_as_it_is_and_everything_else_is() {
        for text in HOSTILE {
            for written in [line(text), lines(text), set_in(text), crate::text::excerpt(text)] {
                assert!(written.chars().all(|c| is_shown(c) || c == '\n'), "{written:?}");
            }
            assert!(!line(text).contains('\n') && !crate::text::excerpt(text).contains('\n'));
            assert!(set_in(text).lines().skip(1).all(|line| line.starts_with("    ")), "{text:?}");
        }
        for text in ["flat.1", "größer", "東京", "10.1.0.0/16 → eth0", "e\u{301}"] {
            assert_eq!((line(text), lines(text), json(text)), (text.to_owned(), text.to_owned(), text.to_owned()));
        }
        assert_eq!(json("{\"a\": \"x\u{202e}\u{e0041}\u{9b}\"}\n"), "{\"a\": \"x\\u202e\\udb40\\udc41\\u009b\"}\n");
    }
}
