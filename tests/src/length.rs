//! The lengths of functions, read from the sources: whoever reads a function should have it before their eyes at once.

use std::fs;
use std::path::Path;

use crate::prose::sources;

/// The most lines that a function may have, from `fn` to its closing brace.
pub const LONGEST: usize = 60;

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The file, and the function's name.
    pub place: String,
    /// The number of its lines.
    pub lines: usize,
}

/// Returns the functions of the shipped sources below `root`: those of tests are left out.
#[must_use]
pub fn functions(root: &Path) -> Vec<Function> {
    let is_test = |path: &Path| {
        let names = path.components().map(|part| part.as_os_str().to_string_lossy());
        let mut stems = names.map(|name| name.trim_end_matches(".rs").to_owned());
        stems.any(|stem| ["tests", "benches", "proptests", "fixture"].contains(&stem.as_str()))
    };
    let shipped = sources(root).into_iter().filter(|path| !is_test(path.strip_prefix(root).unwrap_or(path)));
    shipped
        .flat_map(|path| {
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            in_text(&name, &fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// Returns the functions of `text`, up to the tests at its end.
fn in_text(file: &str, text: &str) -> Vec<Function> {
    let code = code(text);
    let end = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
    let code = &code[..end];
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let is_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if let (true, false, Some(body)) = (is_word, name.is_empty(), body(&code[at..])) {
            found.push(Function { place: format!("{file}: {name}"), lines: body.lines().count() });
        }
    }
    found
}

/// Returns the function at the start of `code`, to its closing brace; `None`: it has no body.
fn body(code: &str) -> Option<&str> {
    let (mut brackets, mut braces) = (0_i32, 0_i32);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 && braces == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 {
                    return Some(&code[..=at]);
                }
            }
            _ => {}
        }
    }
    None
}

/// Returns `text` without what is in comments, strings and character literals. Its lines stay.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            'r' if rest.starts_with("r#\"") => rest[3..].find("\"#").map_or(rest.len(), |end| end + 5),
            '"' => string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        let (gone, kept) = rest.split_at(if skipped == 0 { c.len_utf8() } else { skipped });
        match skipped {
            0 => code.push(c),
            _ => code.extend(gone.chars().filter(|c| *c == '\n')),
        }
        rest = kept;
    }
    code
}

/// Returns the length of the string literal at the start of `text`.
fn string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Returns the length of the character literal at the start of `text`; 0: it is a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => text[3..].find('\'').map_or(0, |end| end + 4),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_short_enough_to_be_seen_at_once() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let all = functions(&root);
        assert!(all.len() > 2500, "only {} functions were found", all.len());
        let long = all.iter().filter(|function| function.lines > LONGEST);
        let long: Vec<String> = long.map(|function| format!("{} ({})", function.place, function.lines)).collect();
        assert!(long.is_empty(), "longer than {LONGEST} lines: {}", long.join(", "));
    }

    #[test]
    fn a_function_ends_where_its_brace_does() {
        let text = "fn a() {\n    // }\n    let x = \"}\";\n    let y = '}';\n    let z: &'static str = r#\"}\"#;\n}\n\
                    trait T {\n    fn b(&self, c: [u8; 2]) -> u8;\n}\n\
                    #[cfg(test)]\nmod tests {\n    fn d() {}\n}\n";
        assert_eq!(in_text("f", text), [Function { place: "f: a".to_owned(), lines: 6 }]);
    }
}
