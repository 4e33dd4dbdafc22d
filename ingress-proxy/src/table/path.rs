//! Paths: the one form that is routed on and forwarded.
//!
//! A proxy that routes on one reading of a path and forwards another is how `/public/..%2fadmin` reaches an
//! admin page. So every path is brought into one form before it is looked up, and that form is what the
//! backend gets. What nginx also normalises is normalised (RFC 3986 §6.2.2): unreserved characters are
//! decoded, escapes are written in upper case, `.` and `..` are resolved, repeated slashes become one. What
//! two parsers could read differently is refused: escaped slash, backslash, dot and NUL, raw backslash,
//! control characters, bytes outside ASCII, `..;` elements, and `..` that climbs above the root.

use std::borrow::Cow;

/// Why a path is refused; the text goes to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not in origin form.
    #[error("the path does not start with a slash")]
    NotAbsolute,
    /// `%2f` or `%5c`.
    #[error("the path has an escaped slash or backslash (%2f, %5c)")]
    EscapedSlash,
    /// `%2e`.
    #[error("the path has an escaped dot (%2e)")]
    EscapedDot,
    /// `%00` and the other escaped control characters.
    #[error("the path has an escaped control character")]
    EscapedControl,
    /// `%` without two hexadecimal digits.
    #[error("the path has a percent sign without two hexadecimal digits")]
    BadEscape,
    /// A raw byte that a URI must not have, a backslash among them.
    #[error("the path has a character that a URI must escape")]
    Character,
    /// `.;x` or `..;x`: some servers drop the parameter and then resolve the dots.
    #[error("the path has a dot element with a parameter (..;)")]
    DotParameter,
    /// More `..` than there are elements.
    #[error("the path climbs above the root")]
    AboveRoot,
}

/// The normal form of a path (without query). Borrows when it is in normal form already.
pub fn normalize_path(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    rewrite(path).map(Cow::Owned)
}

/// What one glance tells of a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Glance {
    Fine,
    Slash,
    Dot,
    /// Escaped, or not to be there at all.
    Look,
}

/// One look instead of comparisons: every request's path goes through it.
const GLANCES: [Glance; 256] = {
    let mut glances = [Glance::Look; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        glances[byte as usize] = match byte {
            b'/' => Glance::Slash,
            b'.' => Glance::Dot,
            byte if allowed(byte) && byte != b'%' => Glance::Fine,
            _ => Glance::Look,
        };
        byte += 1;
    }
    glances
};

/// Whether one glance is enough: nothing escaped, nothing doubled, no element that starts with a dot.
fn is_plain(path: &[u8]) -> bool {
    let mut before = Glance::Fine;
    path.iter().all(|&byte| {
        let glance = GLANCES[usize::from(byte)];
        let starts_element = before == Glance::Slash;
        before = glance;
        match glance {
            Glance::Fine => true,
            Glance::Slash | Glance::Dot => !starts_element,
            Glance::Look => false,
        }
    })
}

/// `pchar` of RFC 3986 and `/`, and the few that browsers send raw (`|`, `^`, `[`, `]`, `{`, `}`, `` ` ``, `"`,
/// `<`, `>`): none of them can be read as a separator.
const fn allowed(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'#' | b'?')
}

fn rewrite(path: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len());
    let mut open = false; // whether the path ends in a slash so far
    for element in path[1..].split('/') {
        open = match element {
            "" | "." => true,
            ".." => {
                let parent = out.rfind('/').ok_or(PathError::AboveRoot)?;
                out.truncate(parent);
                true
            }
            _ if element.starts_with(".;") || element.starts_with("..;") => {
                return Err(PathError::DotParameter);
            }
            _ => {
                out.push('/');
                push_element(&mut out, element)?;
                false
            }
        };
    }
    if open {
        out.push('/');
    }
    Ok(out)
}

fn push_element(out: &mut String, element: &str) -> Result<(), PathError> {
    let mut rest = element.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            if !allowed(byte) {
                return Err(PathError::Character);
            }
            out.push(char::from(byte));
            rest = tail;
            continue;
        }
        let (Some(high), Some(low)) = (hex(tail, 0), hex(tail, 1)) else { return Err(PathError::BadEscape) };
        match high << 4 | low {
            b'/' | b'\\' => return Err(PathError::EscapedSlash),
            b'.' => return Err(PathError::EscapedDot),
            0..=0x1f | 0x7f => return Err(PathError::EscapedControl),
            plain if plain.is_ascii_alphanumeric() || matches!(plain, b'-' | b'_' | b'~') => {
                out.push(char::from(plain));
            }
            _ => {
                out.push('%');
                out.push(char::from(tail[0].to_ascii_uppercase()));
                out.push(char::from(tail[1].to_ascii_uppercase()));
            }
        }
        rest = &tail[2..];
    }
    Ok(())
}

fn hex(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).and_then(|&digit| char::from(digit).to_digit(16)).map(|digit| digit as u8)
}
