//! Compose's own dotenv grammar, read into spans so that one value can change and no other byte does (H103).
//!
//! The grammar is that of the Compose Specification's reference library: optional `export`, `NAME=…` or `NAME: …`, a bare
//! `NAME` that is inherited, plain values cut at ` #`, double quotes with escapes and expansion, single quotes that take
//! everything but `\'` as it stands. A file that Compose would not read is refused, and never guessed at.
//!
//! Every edit is read back: the whole new text is parsed again, and counts only if the owned name reads as its new value
//! and every other name as before (H99, H107, H108).

use keywheel_core::planted;
use std::ops::Range;

use keywheel_core::secret::SecretValue;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a text cannot be read or edited; never holds any of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DotenvError {
    #[error("line {line} is nothing that Compose can read")]
    Malformed { line: usize },
    #[error("`{name}` is assigned more than once, and only the last one counts; leave one of them")]
    Twice { name: String },
    #[error(
        "`{name}` is expanded from another variable; give it a value of its own, or own the variable that it takes"
    )]
    Expanded { name: String },
    #[error(
        "`{name}` stands without a value, so that it is inherited; give it a value in the file"
    )]
    Inherited { name: String },
    #[error(
        "`{name}` is no variable name; use letters, digits, `_`, `.`, `-`, `[` or `]`, and begin with a letter or `_`"
    )]
    BadName { name: String },
    #[error(
        "the value for `{name}` holds bytes that an environment file cannot carry (NUL, or not UTF-8)"
    )]
    Uncarriable { name: String },
    #[error("writing `{name}` would change how another line reads")]
    Disturbs { name: String },
}

/// What Compose reads under one name of a `.env` file.
pub struct Variable {
    /// The name.
    pub name: String,
    /// The line on which it begins.
    pub line: usize,
    /// What it holds.
    pub held: Held,
}

/// What a variable holds.
pub enum Held {
    /// A value that stands in the file.
    Literal(SecretValue),
    /// A value that hangs on other variables.
    Expanded,
    /// Nothing: the variable is inherited.
    Inherited,
}

/// A file that Compose would not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The line where it would give up.
    pub line: usize,
}

/// Returns every variable of a text, in its order.
///
/// # Errors
/// [`Unreadable`] where Compose would refuse the text.
pub fn variables(text: &SecretValue) -> Result<Vec<Variable>, Unreadable> {
    let text = text.expose();
    let statements = parse(text).map_err(|error| match error {
        DotenvError::Malformed { line } => Unreadable { line },
        _ => Unreadable { line: 1 },
    })?;
    let variable = |statement: &Statement| Variable {
        name: String::from_utf8_lossy(&text[statement.name.clone()]).into_owned(),
        line: line_of(text, statement.start),
        held: match statement.reading(text) {
            Reading::Literal(value) => Held::Literal(value),
            Reading::Expanded(_) => Held::Expanded,
            Reading::Inherited => Held::Inherited,
        },
    };
    Ok(statements.iter().map(variable).collect())
}

/// Returns whether a variable can be a slot.
pub fn is_slot_name(name: &str) -> bool {
    check_name(name).is_ok()
}

/// Checks that a name can be owned.
pub(super) fn check_name(name: &str) -> Result<(), DotenvError> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-[]".contains(&b));
    if first && rest { Ok(()) } else { Err(DotenvError::BadName { name: name.into() }) }
}

/// Reads a name's value as Compose would; none where it is not assigned.
pub(super) fn read(text: &SecretValue, name: &str) -> Result<Option<SecretValue>, DotenvError> {
    let text = text.expose();
    let Some(statement) = owned(text, &parse(text)?, name)? else { return Ok(None) };
    match statement.reading(text) {
        Reading::Literal(value) => Ok(Some(value)),
        Reading::Expanded(_) => Err(DotenvError::Expanded { name: name.into() }),
        Reading::Inherited => Err(DotenvError::Inherited { name: name.into() }),
    }
}

/// Sets a name to a value: in the place and the quotes that it has, where they can carry it, else at the end of the text.
pub(super) fn set(
    text: &SecretValue,
    name: &str,
    value: &SecretValue,
) -> Result<SecretValue, DotenvError> {
    check_name(name)?;
    read(text, name)?;
    let literal = std::str::from_utf8(value.expose()).ok().filter(|v| !v.contains('\0'));
    let literal = literal.ok_or_else(|| DotenvError::Uncarriable { name: name.into() })?;
    let before = Readings::of(text.expose())?;
    let statement = owned(text.expose(), &before.statements, name)?;
    let expected =
        |after: &Readings| before.differ_by_value(after, statement.as_ref(), name, value);
    if planted!("written_as_it_is") {
        return Ok(match &statement {
            Some(statement) => splice(text.expose(), statement.value_span(), value.expose()),
            None => append(text.expose(), name, value.expose()),
        });
    }
    let present = statement.as_ref().and_then(Statement::style);
    present
        .into_iter()
        .chain([Style::Single, Style::Double])
        .filter_map(|style| style.write(literal))
        .map(|written| match &statement {
            Some(statement) => splice(text.expose(), statement.value_span(), written.expose()),
            None => append(text.expose(), name, written.expose()),
        })
        .find(|candidate| Readings::of(candidate.expose()).is_ok_and(|after| expected(&after)))
        .ok_or_else(|| DotenvError::Disturbs { name: name.into() })
}

/// Removes a name's assignment, and its line where nothing else stands on it.
pub(super) fn remove(text: &SecretValue, name: &str) -> Result<SecretValue, DotenvError> {
    read(text, name)?;
    let before = Readings::of(text.expose())?;
    let Some(statement) = owned(text.expose(), &before.statements, name)? else {
        return Ok(text.duplicate());
    };
    let removed = splice(text.expose(), removal(text.expose(), &statement), &[]);
    let after = Readings::of(removed.expose())?;
    if before.differ_by_absence(&after, &statement) {
        Ok(removed)
    } else {
        Err(DotenvError::Disturbs { name: name.into() })
    }
}

/// Returns the names whose values are expanded from `name`, and so change with it.
pub(super) fn expanded_from(text: &SecretValue, name: &str) -> Result<Vec<String>, DotenvError> {
    let text = text.expose();
    let statements = parse(text)?;
    let takes = |statement: &&Statement| match statement.reading(text) {
        Reading::Expanded(raw) => mentions(raw.expose(), name.as_bytes()),
        _ => false,
    };
    let names = statements
        .iter()
        .filter(takes)
        .map(|s| String::from_utf8_lossy(&text[s.name.clone()]).into_owned());
    Ok(names.collect())
}

/// Returns whether `$name` or `${name…` stands in a value.
fn mentions(raw: &[u8], name: &[u8]) -> bool {
    let part_of_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    raw.iter().enumerate().filter(|(_, b)| **b == b'$').any(|(at, _)| {
        let rest = &raw[at + 1..];
        let rest = rest.strip_prefix(b"{").unwrap_or(rest);
        rest.strip_prefix(name).is_some_and(|after| !after.first().is_some_and(part_of_name))
    })
}

/// One assignment, or one bare name.
#[derive(Clone, Debug)]
struct Statement {
    /// Where it begins: at `export`, if that is there.
    start: usize,
    name: Range<usize>,
    /// Where its value stands, quotes included; none for a bare name.
    value: Option<(Range<usize>, Style)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Plain,
    Single,
    Double,
}

/// What Compose makes of a statement.
enum Reading {
    Literal(SecretValue),
    /// A value that hangs on other variables; the text as it stands.
    Expanded(SecretValue),
    Inherited,
}

impl Reading {
    fn same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Literal(a), Self::Literal(b)) | (Self::Expanded(a), Self::Expanded(b)) => {
                a.same_as(b)
            }
            (Self::Inherited, Self::Inherited) => true,
            _ => false,
        }
    }

    fn is_literal(&self, value: &SecretValue) -> bool {
        matches!(self, Self::Literal(literal) if literal.same_as(value))
    }
}

impl Statement {
    /// Where the value stands; where it would stand, for a bare name.
    fn value_span(&self) -> Range<usize> {
        self.value.as_ref().map_or(self.name.end..self.name.end, |(span, _)| span.clone())
    }

    fn style(&self) -> Option<Style> {
        self.value.as_ref().map(|(_, style)| *style)
    }

    fn reading(&self, text: &[u8]) -> Reading {
        let Some((span, style)) = &self.value else { return Reading::Inherited };
        let raw = &text[span.clone()];
        match style {
            Style::Single => Reading::Literal(SecretValue::new(unquoted(raw))),
            Style::Plain => expanded(raw.to_vec()),
            Style::Double => expanded(unescaped(&SecretValue::new(unquoted(raw)))),
        }
    }
}

/// A text's statements and what Compose makes of them.
struct Readings {
    statements: Vec<Statement>,
    named: Vec<(Vec<u8>, Reading)>,
}

impl Readings {
    fn of(text: &[u8]) -> Result<Self, DotenvError> {
        let statements = parse(text)?;
        let named =
            statements.iter().map(|s| (text[s.name.clone()].to_vec(), s.reading(text))).collect();
        Ok(Self { statements, named })
    }

    /// Returns whether `after` is the same but for the value of one statement, or for one more at the end.
    fn differ_by_value(
        &self,
        after: &Self,
        owned: Option<&Statement>,
        name: &str,
        value: &SecretValue,
    ) -> bool {
        let at = self.index(owned).unwrap_or(self.named.len());
        let others = after.named.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, n)| n);
        let written =
            after.named.get(at).is_some_and(|(n, r)| n == name.as_bytes() && r.is_literal(value));
        written && alike(self.without(self.index(owned)), others)
    }

    /// Returns whether `after` is the same but for the absence of one statement.
    fn differ_by_absence(&self, after: &Self, owned: &Statement) -> bool {
        alike(self.without(self.index(Some(owned))), after.named.iter())
    }

    fn index(&self, owned: Option<&Statement>) -> Option<usize> {
        owned.and_then(|owned| self.statements.iter().position(|s| s.start == owned.start))
    }

    fn without(&self, at: Option<usize>) -> impl Iterator<Item = &(Vec<u8>, Reading)> {
        self.named.iter().enumerate().filter(move |(i, _)| Some(*i) != at).map(|(_, n)| n)
    }
}

fn alike<'a>(
    mut before: impl Iterator<Item = &'a (Vec<u8>, Reading)>,
    mut after: impl Iterator<Item = &'a (Vec<u8>, Reading)>,
) -> bool {
    loop {
        match (before.next(), after.next()) {
            (None, None) => return true,
            (Some((a, x)), Some((b, y))) if a == b && x.same_as(y) => {}
            _ => return false,
        }
    }
}

/// Finds the one statement of a name; exactly that name (H107).
fn owned(
    text: &[u8],
    statements: &[Statement],
    name: &str,
) -> Result<Option<Statement>, DotenvError> {
    let is_it = |found: &[u8]| {
        let loosely = planted!("name_matched_loosely") && found.ends_with(name.as_bytes());
        found == name.as_bytes() || loosely
    };
    let mut found = statements.iter().filter(|s| is_it(&text[s.name.clone()]));
    let first = found.next().cloned();
    if found.next().is_some() && !planted!("assigned_twice_ignored") {
        Err(DotenvError::Twice { name: name.into() })
    } else {
        Ok(first)
    }
}

// Writing.

impl Style {
    /// Writes a value in this style; none where the style cannot carry it in every version of Compose.
    fn write(self, value: &str) -> Option<SecretValue> {
        let written = match self {
            Self::Plain => is_plain(value).then(|| value.as_bytes().to_vec()),
            Self::Single => {
                fits_single_quotes(value).then(|| ["'", value, "'"].concat().into_bytes())
            }
            Self::Double => Some(double_quoted(value)),
        };
        written.map(SecretValue::new)
    }
}

/// Plain text means the same to Compose, to `docker run --env-file` and to a shell's `source` of one word.
fn is_plain(value: &str) -> bool {
    value.bytes().all(|b| b.is_ascii_graphic() && !b"'\"#$\\`".contains(&b))
}

fn fits_single_quotes(value: &str) -> bool {
    !value.ends_with('\\') && !value.contains(['\'', '\n', '\r'])
}

fn double_quoted(value: &str) -> Vec<u8> {
    let mut written = Vec::with_capacity(2 * value.len() + 2);
    written.push(b'"');
    for byte in value.bytes() {
        match byte {
            b'\n' => written.extend(b"\\n"),
            b'\r' => written.extend(b"\\r"),
            b'\\' | b'"' | b'$' => written.extend([b'\\', byte]),
            _ => written.push(byte),
        }
    }
    written.push(b'"');
    written
}

fn splice(text: &[u8], span: Range<usize>, written: &[u8]) -> SecretValue {
    SecretValue::new([&text[..span.start], written, &text[span.end..]].concat())
}

/// Adds an assignment as the last line, with the text's own line ends, and without a final one where the text has none.
fn append(text: &[u8], name: &str, written: &[u8]) -> SecretValue {
    let first_break = text.iter().position(|b| *b == b'\n');
    let line_end: &[u8] =
        if first_break.is_some_and(|at| text[..at].ends_with(b"\r")) { b"\r\n" } else { b"\n" };
    let begins_a_line = text.is_empty() || text == BYTE_ORDER_MARK || text.ends_with(b"\n");
    let (before, after): (&[u8], &[u8]) =
        if begins_a_line { (b"", line_end) } else { (line_end, b"") };
    SecretValue::new([text, before, name.as_bytes(), b"=", written, after].concat())
}

/// Returns what goes with an assignment: the whole line, if nothing but blanks stands beside it.
fn removal(text: &[u8], statement: &Statement) -> Range<usize> {
    let end = statement.value_span().end;
    let line_start = text[..statement.start]
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(first_byte(text), |at| at + 1);
    let line_break = text[end..].iter().position(|b| *b == b'\n').map(|at| end + at);
    let line_end = line_break.unwrap_or(text.len());
    let blank = |range: Range<usize>| text[range].iter().all(u8::is_ascii_whitespace);
    if !blank(line_start..statement.start) || !blank(end..line_end) {
        return statement.start..end;
    }
    match line_break {
        Some(at) => line_start..at + 1,
        None => before_line_break(text, line_start)..text.len(),
    }
}

/// Returns where the break begins that ends the line before `line_start`.
fn before_line_break(text: &[u8], line_start: usize) -> usize {
    let before = &text[..line_start];
    let without =
        before.strip_suffix(b"\r\n").or_else(|| before.strip_suffix(b"\n")).unwrap_or(before);
    without.len()
}

fn first_byte(text: &[u8]) -> usize {
    if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 }
}

// Reading.

fn parse(text: &[u8]) -> Result<Vec<Statement>, DotenvError> {
    let mut statements = Vec::new();
    let mut at = first_byte(text);
    while let Some(start) = next_statement(text, at) {
        let (statement, end) = statement_at(text, start).ok_or_else(|| malformed(text, start))?;
        statements.push(statement);
        at = end;
    }
    Ok(statements)
}

fn malformed(text: &[u8], at: usize) -> DotenvError {
    DotenvError::Malformed { line: line_of(text, at) }
}

fn line_of(text: &[u8], at: usize) -> usize {
    1 + text[..at].iter().filter(|b| **b == b'\n').count()
}

/// Skips blanks, line ends and comments.
fn next_statement(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at = skip(text, at, char::is_whitespace);
        if *text.get(at)? != b'#' {
            return Some(at);
        }
        at += text[at..].iter().position(|b| *b == b'\n')?;
    }
}

/// Reads the statement at `start`, and where the text goes on; none where Compose would give up.
fn statement_at(text: &[u8], start: usize) -> Option<(Statement, usize)> {
    let name_start = after_export(text, start);
    if name_start == text.len() {
        return None;
    }
    let Some(sign) = name_end(text, name_start)? else {
        // A bare name that the text ends with is read as the value of a nameless variable.
        return assignment(text, start, name_start..name_start, name_start);
    };
    let name = name_start..trimmed_end(text, name_start..sign);
    if text[name.clone()].contains(&b' ') {
        return None;
    }
    match text[sign] {
        b'\n' => Some((Statement { start, name, value: None }, sign + 1)),
        _ => assignment(text, start, name, sign + 1),
    }
}

fn after_export(text: &[u8], start: usize) -> usize {
    match text[start..].strip_prefix(b"export") {
        Some([b'\t' | b'\n' | b'\x0c' | b'\r' | b' ', ..]) => {
            skip(text, start + b"export".len(), is_blank)
        }
        _ => start,
    }
}

/// Returns where the sign stands that ends the name: `=`, `:` or a line's end. None outside where a character does not
/// belong in a name, none inside where the text ends first.
fn name_end(text: &[u8], start: usize) -> Option<Option<usize>> {
    let mut at = start;
    while let Some((char, width)) = char_at(text, at) {
        match char {
            '=' | ':' | '\n' => return Some(Some(at)),
            '_' | '.' | '-' | '[' | ']' => {}
            _ if is_blank(char) || char.is_alphabetic() || char.is_numeric() => {}
            _ => return None,
        }
        at += width;
    }
    Some(None)
}

fn assignment(
    text: &[u8],
    start: usize,
    name: Range<usize>,
    after_sign: usize,
) -> Option<(Statement, usize)> {
    let value_start = skip(text, after_sign, is_blank);
    let (span, style, end) = match text.get(value_start) {
        Some(b'\'') => quoted(text, value_start, Style::Single)?,
        Some(b'"') => quoted(text, value_start, Style::Double)?,
        _ => plain(text, after_sign, value_start),
    };
    Some((Statement { start, name, value: Some((span, style)) }, end))
}

fn quoted(text: &[u8], start: usize, style: Style) -> Option<(Range<usize>, Style, usize)> {
    let quote = text[start];
    let mut at = start + 1;
    loop {
        match *text.get(at)? {
            b'\\' => at += 2,
            byte if byte == quote => return Some((start..at + 1, style, at + 1)),
            _ => at += 1,
        }
    }
}

fn plain(text: &[u8], after_sign: usize, start: usize) -> (Range<usize>, Style, usize) {
    let line_end =
        text[start..].iter().position(|b| *b == b'\n').map_or(text.len(), |at| start + at);
    let comment = text[start..line_end]
        .windows(2)
        .position(|pair| pair == b" #")
        .map_or(line_end, |at| start + at);
    let end = trimmed_end(text, start..comment);
    let span = if end > start { start..end } else { empty_value(text, after_sign) };
    (span, Style::Plain, (line_end + 1).min(text.len()))
}

/// Returns where an empty value stands: after the blanks, and before the carriage return of the line's end.
fn empty_value(text: &[u8], after_sign: usize) -> Range<usize> {
    let at = skip(text, after_sign, |char| char == ' ' || char == '\t');
    at..at
}

/// Takes off quotes, and the backslash before a quote of the same kind; every other backslash stays.
fn unquoted(raw: &[u8]) -> Vec<u8> {
    let quote = raw[0];
    let inner = &raw[1..raw.len() - 1];
    let mut value = Vec::with_capacity(inner.len());
    let mut at = 0;
    while at < inner.len() {
        if inner[at] != b'\\' {
            value.push(inner[at]);
            at += 1;
            continue;
        }
        let escaped = inner[at + 1];
        value.extend((escaped != quote).then_some(b'\\'));
        value.push(escaped);
        at += 2;
    }
    value
}

/// Resolves the escapes of double quotes; `\$` becomes `$$`, which expansion then reads as one `$`.
fn unescaped(value: &SecretValue) -> Vec<u8> {
    let value = value.expose();
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while at < value.len() {
        let width = if value[at] == b'\\' { escape(&value[at + 1..], &mut out) } else { 0 };
        if width == 0 {
            out.push(value[at]);
        }
        at += 1 + width;
    }
    out
}

/// Writes what stands for an escape and returns how long it is after its backslash; 0 where it is none.
fn escape(rest: &[u8], out: &mut Vec<u8>) -> usize {
    let simple = match rest.first() {
        Some(b'a') => b'\x07',
        Some(b'b') => b'\x08',
        Some(b'f') => b'\x0c',
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b't') => b'\t',
        Some(b'v') => b'\x0b',
        Some(&sign @ (b'"' | b'\\')) => sign,
        Some(b'$') => {
            out.extend(b"$$");
            return 1;
        }
        Some(b'0') => return octal(&rest[1..], out) + 1,
        _ => return 0,
    };
    out.push(simple);
    1
}

/// Writes the character of three octal digits; anything else keeps its backslash and loses its `0`, as in Compose.
fn octal(rest: &[u8], out: &mut Vec<u8>) -> usize {
    let count = rest.iter().take(3).take_while(|b| b.is_ascii_digit()).count();
    let digits = &rest[..count];
    let code = std::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 8).ok());
    match code.filter(|_| count == 3) {
        Some(code) => out.extend(char::from(code).encode_utf8(&mut [0; 2]).bytes()),
        None => {
            out.push(b'\\');
            out.extend(digits);
        }
    }
    count
}

/// Resolves `$$`, and tells a value that hangs on other variables.
fn expanded(value: Vec<u8>) -> Reading {
    let value = SecretValue::new(value);
    let raw = value.expose();
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let (byte, next) = (raw[at], raw.get(at + 1));
        match next {
            Some(b'$') if byte == b'$' => at += 1,
            Some(b'{' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | 0x80..) if byte == b'$' => {
                return Reading::Expanded(value);
            }
            _ => {}
        }
        out.push(byte);
        at += 1;
    }
    Reading::Literal(SecretValue::new(out))
}

/// The blanks inside a line.
fn is_blank(char: char) -> bool {
    matches!(char, '\t' | '\x0b' | '\x0c' | '\r' | ' ' | '\u{85}' | '\u{a0}')
}

fn skip(text: &[u8], mut at: usize, passes: impl Fn(char) -> bool) -> usize {
    while let Some((char, width)) = char_at(text, at)
        && passes(char)
    {
        at += width;
    }
    at
}

/// Returns where the range ends without the white space at its end.
fn trimmed_end(text: &[u8], range: Range<usize>) -> usize {
    let mut end = range.start;
    let mut at = range.start;
    while at < range.end
        && let Some((char, width)) = char_at(text, at)
    {
        at += width;
        if !char.is_whitespace() {
            end = at.min(range.end);
        }
    }
    end
}

/// Returns the character at a place and its width; a byte that is no UTF-8 reads as U+FFFD.
fn char_at(text: &[u8], at: usize) -> Option<(char, usize)> {
    let window = &text[at.min(text.len())..text.len().min(at + 4)];
    let valid = match std::str::from_utf8(window) {
        Ok(valid) => valid,
        Err(error) => std::str::from_utf8(&window[..error.valid_up_to()]).unwrap_or_default(),
    };
    match valid.chars().next() {
        Some(char) => Some((char, char.len_utf8())),
        None if window.is_empty() => None,
        None => Some((char::REPLACEMENT_CHARACTER, 1)),
    }
}

#[cfg(test)]
mod tests {
    use keywheel_driver::conformance::store::hostile_values;
    use proptest::prelude::*;

    use super::*;

    fn value(bytes: impl AsRef<[u8]>) -> SecretValue {
        SecretValue::new(bytes.as_ref().to_vec())
    }

    fn read_text(text: &str, name: &str) -> Result<Option<String>, DotenvError> {
        let read = read(&value(text), name)?;
        Ok(read.map(|read| String::from_utf8(read.expose().to_vec()).unwrap()))
    }

    fn set_text(text: &str, name: &str, new: &str) -> Result<String, DotenvError> {
        Ok(String::from_utf8(set(&value(text), name, &value(new))?.expose().to_vec()).unwrap())
    }

    fn remove_text(text: &str, name: &str) -> Result<String, DotenvError> {
        Ok(String::from_utf8(remove(&value(text), name)?.expose().to_vec()).unwrap())
    }

    #[test]
    fn every_variable_is_listed_with_its_line() {
        let listed = variables(&value("# first\nA=1\n\nB='x\ny'\nexport C\nD=$A\n")).ok().unwrap();
        let rows = listed.iter().map(|one| {
            let held = match &one.held {
                Held::Literal(value) => String::from_utf8(value.expose().to_vec()).unwrap(),
                Held::Expanded => "expanded".into(),
                Held::Inherited => "inherited".into(),
            };
            (one.name.as_str(), one.line, held)
        });
        let expected =
            [("A", 2, "1"), ("B", 4, "x\ny"), ("C", 6, "inherited"), ("D", 7, "expanded")];
        assert!(rows.eq(expected.map(|(name, line, held)| (name, line, held.to_owned()))));
        assert_eq!(variables(&value("A=1\nnothing at all\n")).err(), Some(Unreadable { line: 2 }));
    }

    /// Names and values of a text, as Compose reads them; none for what is not a literal.
    fn names(text: &[u8]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let literal = |reading: Reading| match reading {
            Reading::Literal(value) => Some(value.expose().to_vec()),
            _ => None,
        };
        Readings::of(text)
            .unwrap()
            .named
            .into_iter()
            .map(|(name, reading)| (name, literal(reading)))
            .collect()
    }

    /// What a text says of `KEY`.
    const READINGS: &[(&str, &str)] = &[
        ("KEY=value", "value"),
        ("KEY=", ""),
        ("KEY=\r\nB=1", ""),
        ("KEY = value \r\n", "value"),
        ("\u{feff}KEY=value", "value"),
        ("KEY: value", "value"),
        ("KEY: a=b", "a=b"),
        ("  export\tKEY=value", "value"),
        ("KEY=a b  c", "a b  c"),
        ("KEY=value # comment", "value"),
        ("KEY=value #", "value"),
        ("KEY=value#none", "value#none"),
        ("KEY=value\t# none", "value\t# none"),
        ("KEY= # no comment either", "# no comment either"),
        ("KEY=back\\slash\\n", "back\\slash\\n"),
        ("KEY=in 'the' \"middle\"", "in 'the' \"middle\""),
        ("KEY=a$$b", "a$b"),
        ("KEY=cost: $5", "cost: $5"),
        ("KEY=ends in $", "ends in $"),
        ("KEY=''", ""),
        ("KEY=' # $X ${Y} \\n \"'", " # $X ${Y} \\n \""),
        ("KEY='it\\'s'", "it's"),
        ("KEY='two\\\\'", "two\\\\"),
        ("KEY='one\ntwo'", "one\ntwo"),
        ("KEY=\"\"", ""),
        ("KEY=\"a # b\" # comment", "a # b"),
        ("KEY=\"it's\"", "it's"),
        ("KEY=\"\\\"quoted\\\"\"", "\"quoted\""),
        ("KEY=\"one\ntwo\"", "one\ntwo"),
        ("KEY=\"\\a\\b\\f\\n\\r\\t\\v\\\\\"", "\x07\x08\x0c\n\r\t\x0b\\"),
        ("KEY=\"\\\\n\"", "\\n"),
        ("KEY=\"\\c\\x41\\u0041\\ \"", "\\c\\x41\\u0041\\ "),
        ("KEY=\"\\0101\\0377\\01018\"", "A\u{ff}A8"),
        ("KEY=\"\\0\\01\\0999\\0777\"", "\\\\1\\999\\777"),
        ("KEY=\"\\$X \\${X} $$X\"", "$X ${X} $X"),
        ("A='x' KEY='same line'", "same line"),
        ("A='x\ny' # c\nKEY=after", "after"),
        ("# KEY=no\n  # KEY=no\nKEY=yes", "yes"),
        ("KEY=\u{a0}no-break\u{a0}", "no-break"),
    ];

    #[test]
    fn values_read_as_compose_reads_them() {
        for (text, expected) in READINGS {
            assert_eq!(read_text(text, "KEY"), Ok(Some((*expected).into())), "{text:?}");
        }
    }

    #[test]
    fn a_value_that_hangs_on_others_is_told_apart() {
        for text in [
            "KEY=$X",
            "KEY=a${X}",
            "KEY=\"$X\"",
            "KEY=\"\\\\$X\"",
            "KEY=${",
            "KEY=$$$X",
            "KEY=\"\\0044X\"",
            "KEY=$\u{17f}",
        ] {
            assert_eq!(
                read_text(text, "KEY"),
                Err(DotenvError::Expanded { name: "KEY".into() }),
                "{text:?}"
            );
            assert!(set_text(text, "KEY", "new").is_err() && remove_text(text, "KEY").is_err());
        }
        for text in ["KEY\n", "export KEY \r\nB=1"] {
            assert_eq!(
                read_text(text, "KEY"),
                Err(DotenvError::Inherited { name: "KEY".into() }),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_text_that_compose_refuses_is_refused_with_its_line() {
        for (text, line) in [
            ("A=1\nb c=2", 2),
            ("$A=1", 1),
            ("A=1\n\n# c\nB=\"x\n\n", 4),
            ("A='x\\'", 1),
            ("export ", 1),
            ("A=1\n\u{3000}-%", 2),
        ] {
            assert_eq!(read_text(text, "KEY"), Err(DotenvError::Malformed { line }), "{text:?}");
        }
    }

    #[test]
    fn h107_a_name_is_that_name_only() {
        let text = "# KEY=1\n#KEY=1\nOPENAI_KEY=2\nKEY_2=3\nkey=4\nKEY.X=5\nA='\nKEY=6\n'\n";
        assert_eq!(read_text(text, "KEY"), Ok(None));
        let written = set_text(text, "KEY", "new").unwrap();
        assert_eq!(written, format!("{text}KEY='new'\n"));
        assert_eq!(remove_text(&written, "KEY").as_deref(), Ok(text));
        for bad in ["", "9A", "A B", "A=B", "A\nB", "É", "$A", "-A", "A#"] {
            assert_eq!(set_text("", bad, "x"), Err(DotenvError::BadName { name: bad.into() }));
        }
    }

    #[test]
    fn h103_a_name_that_is_assigned_twice_is_refused() {
        let text = "KEY=1\nKEY=2\nB=1\nB=2\nC=3\n";
        let twice = DotenvError::Twice { name: "KEY".into() };
        assert_eq!(read_text(text, "KEY"), Err(twice));
        assert!(set_text(text, "KEY", "3").is_err() && remove_text(text, "KEY").is_err());
        assert_eq!(set_text(text, "C", "4").unwrap(), text.replace("C=3", "C=4"));
    }

    #[test]
    fn h103_only_the_value_changes() {
        for (text, new, expected) in [
            ("KEY=old\n", "new", "KEY=new\n"),
            ("KEY=old", "new", "KEY=new"),
            (
                "\u{feff}# c\r\n  export KEY : old   # note\r\nB=1\r\n",
                "new",
                "\u{feff}# c\r\n  export KEY : new   # note\r\nB=1\r\n",
            ),
            ("KEY='old' B=1", "n'w", "KEY=\"n'w\" B=1"),
            ("KEY='old'# c\n", "new", "KEY='new'# c\n"),
            ("KEY=\"old\"\n", "new", "KEY=\"new\"\n"),
            ("KEY=\"old\nold\"\n", "a\nb$", "KEY=\"a\\nb\\$\"\n"),
            ("KEY='old'\n", "a\nb", "KEY=\"a\\nb\"\n"),
            ("KEY=old # c\n", "", "KEY='' # c\n"),
            ("KEY=old\n", "", "KEY=\n"),
            ("KEY= \r\nB=1\r\n", "new", "KEY= new\r\nB=1\r\n"),
            ("KEY=old\n", "a b", "KEY='a b'\n"),
            ("KEY=old\n", "a\\", "KEY=\"a\\\\\"\n"),
            ("KEY=old\n", "#x", "KEY='#x'\n"),
            ("KEY=old\n", "https://u:p@h/x?y=z&a=%20", "KEY=https://u:p@h/x?y=z&a=%20\n"),
        ] {
            assert_eq!(set_text(text, "KEY", new).as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn h103_an_appended_line_is_like_the_others_and_its_removal_leaves_the_text_as_it_was() {
        for (text, expected) in [
            ("", "KEY='v'\n"),
            ("\u{feff}", "\u{feff}KEY='v'\n"),
            ("A=1\n", "A=1\nKEY='v'\n"),
            ("A=1", "A=1\nKEY='v'"),
            ("A=1\r\n", "A=1\r\nKEY='v'\r\n"),
            ("A=1\r\nB=2", "A=1\r\nB=2\r\nKEY='v'"),
            ("# c", "# c\nKEY='v'"),
        ] {
            assert_eq!(set_text(text, "KEY", "v").as_deref(), Ok(expected), "{text:?}");
            assert_eq!(remove_text(expected, "KEY").as_deref(), Ok(text), "{expected:?}");
        }
    }

    #[test]
    fn h103_a_removal_leaves_what_else_stands_on_the_line() {
        for (text, expected) in [
            ("A=1\nexport KEY='x\ny' \r\nB=2\n", "A=1\nB=2\n"),
            ("KEY=x # note\nB=2\n", " # note\nB=2\n"),
            ("A='1' KEY='x' B='2'\n", "A='1'  B='2'\n"),
            ("KEY=x", ""),
            ("A=1\n", "A=1\n"),
        ] {
            assert_eq!(remove_text(text, "KEY").as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn h103_a_bare_name_at_the_end_is_not_turned_into_an_inherited_one() {
        let disturbs = DotenvError::Disturbs { name: "KEY".into() };
        assert_eq!(set_text("A=1\nBARE", "KEY", "new"), Err(disturbs));
        assert_eq!(set_text("KEY=1\nBARE", "KEY", "2").as_deref(), Ok("KEY=2\nBARE"));
        let disturbs = DotenvError::Disturbs { name: "KEY".into() };
        assert_eq!(remove_text("BARE\nKEY=1", "KEY"), Err(disturbs));
    }

    #[test]
    fn bytes_that_no_environment_can_hold_are_refused() {
        for bytes in [&b"\0"[..], b"a\0b", b"\xff", b"\xc3"] {
            let refused = set(&value("KEY=1\n"), "KEY", &value(bytes)).err();
            assert_eq!(refused, Some(DotenvError::Uncarriable { name: "KEY".into() }));
        }
        // What others put into the file need not be UTF-8.
        let latin = set(&value(b"# caf\xe9\nA=caf\xe9\nKEY=1\n"), "KEY", &value("2")).unwrap();
        assert_eq!(latin.expose(), b"# caf\xe9\nA=caf\xe9\nKEY=2\n");
    }

    #[test]
    fn names_that_take_from_a_name_are_found() {
        let text =
            value("KEY=1\nA=$KEY\nB=\"${KEY:-x}\"\nC=$KEYS\nD='$KEY'\nE=\\$KEY_2\nF=${KEY}\n");
        assert_eq!(expanded_from(&text, "KEY").unwrap(), ["A", "B", "F"]);
    }

    /// The reader that counts: Compose itself, where there is one. `config` needs no engine; it prints `$` twice.
    #[test]
    fn h99_compose_itself_reads_what_is_written() {
        let composes = keywheel_ground::docker::composes();
        let program = composes.into_iter().next().unwrap_or_else(|| "docker-compose".into());
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::write(
            folder.path().join("compose.yml"),
            "services: {s: {image: i, env_file: app.env}}",
        )
        .unwrap();
        let compose = |text: &[u8]| {
            std::fs::write(folder.path().join("app.env"), text).unwrap();
            let mut compose = std::process::Command::new(&program);
            compose.current_dir(folder.path()).args(["-p", "test", "config", "--format", "json"]);
            compose.output().ok().filter(|output| output.status.success()).map(|output| {
                let config: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                config["services"]["s"]["environment"].clone()
            })
        };
        let shown = |value: &str| serde_json::Value::from(value.replace('$', "$$"));
        if compose(b"KEY=1\n").is_none() {
            eprintln!("skipped: there is no Docker Compose 2 or later at {}", program.display());
            return;
        }
        for (text, expected) in READINGS {
            let read =
                compose(text.as_bytes()).unwrap_or_else(|| panic!("Compose refuses {text:?}"));
            assert_eq!(read["KEY"], shown(expected), "{text:?}");
        }
        for before in ["NAME=old # c\r\n", "NAME='old' OTHER='o'\n", "NAME: \"old\"\n", ""] {
            let values = hostile_values();
            let names: Vec<_> = (0..values.len()).map(|number| format!("KEY_{number}")).collect();
            let text = names.iter().map(|name| before.replace("NAME", name)).collect::<String>();
            let written = names
                .iter()
                .zip(&values)
                .fold(value(text), |text, (name, new)| set(&text, name, &value(new)).unwrap());
            let read = compose(written.expose()).expect("Compose reads what was written");
            for (name, new) in names.iter().zip(&values) {
                assert_eq!(read[name], shown(std::str::from_utf8(new).unwrap()), "over {before:?}");
            }
            let others = usize::from(before.contains("OTHER"));
            assert_eq!(read.as_object().unwrap().len(), values.len() + others, "over {before:?}");
        }
    }

    /// Lines as people write them, with `KEY` at most once.
    fn a_text() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            "[A-Z_][A-Z0-9_]{0,6}",
            Just("KEY_2".into()),
            Just("MY_KEY".into()),
            Just("KEY.X".into())
        ];
        let written = prop_oneof![
            "[a-zA-Z0-9/+=:#@-]{0,12}",
            "'([^'\\\\]|\\\\'){0,12}'",
            "\"([^\"\\\\]|\\\\.){0,12}\"",
            Just("$OTHER and ${MORE}".into()),
        ];
        let assignment = ("(export )?", name, " ?[=:][ \t]?", written, "( | # note| #)?");
        let other = assignment.prop_map(|(export, name, sign, written, after)| {
            let name = if name == "KEY" { "KEY_3".into() } else { name };
            format!("{export}{name}{sign}{written}{after}")
        });
        let line = prop_oneof![4 => other, 1 => "#[^\r\n]{0,12}", 1 => "[ \t]{0,3}", 1 => Just("BARE".into()), 1 => Just("# KEY=no".into())];
        let owned = prop_oneof![
            "(export )?KEY ?[=:] ?[a-z0-9]{0,6}( # c)?",
            "KEY='[^'\\\\]{0,9}'",
            "KEY=\"[^\"\\\\$]{0,9}\" # c"
        ];
        let lines = (
            proptest::collection::vec(line, 0..8),
            proptest::option::of((owned, any::<proptest::sample::Index>())),
        );
        (lines, prop_oneof![Just("\n"), Just("\r\n")], any::<bool>(), any::<bool>()).prop_map(
            |((mut lines, owned), end, mark, last)| {
                if let Some((owned, at)) = owned {
                    lines.insert(at.index(lines.len() + 1), owned);
                }
                let mark = if mark { "\u{feff}" } else { "" };
                format!("{mark}{}{}", lines.join(end), if last { end } else { "" })
            },
        )
    }

    fn a_value() -> impl Strategy<Value = String> {
        let hostile = "['\"$\\\\# \n\r\t{}=a-c]{0,12}";
        prop_oneof!["[^\0]{0,16}", hostile, "[A-Za-z0-9_-]{0,44}"]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn h103_a_write_touches_the_owned_value_and_nothing_else(text in a_text(), new in a_value()) {
            let before = value(&text);
            let Ok(present) = read(&before, "KEY") else { return Ok(()) };
            let written = match set(&before, "KEY", &value(&new)) {
                Ok(written) => written,
                // Only a bare name that the text ends with may stand in the way.
                Err(error) => {
                    prop_assert_eq!(error, DotenvError::Disturbs { name: "KEY".into() });
                    prop_assert!(text.ends_with("BARE") && present.is_none());
                    return Ok(());
                }
            };
            prop_assert!(read(&written, "KEY").unwrap().unwrap().same_as(&value(&new)));
            let (old, written_text) = (names(text.as_bytes()), names(written.expose()));
            let others = |all: &[(Vec<u8>, Option<Vec<u8>>)]| all.iter().filter(|(n, _)| n != b"KEY").cloned().collect::<Vec<_>>();
            prop_assert_eq!(others(&old), others(&written_text));
            match parse(text.as_bytes()).unwrap().iter().find(|s| &text.as_bytes()[s.name.clone()] == b"KEY") {
                Some(statement) => {
                    let span = statement.value_span();
                    prop_assert!(written.expose().starts_with(&text.as_bytes()[..span.start]));
                    prop_assert!(written.expose().ends_with(&text.as_bytes()[span.end..]));
                }
                None => prop_assert!(written.expose().starts_with(text.as_bytes())),
            }
            prop_assert!(set(&written, "KEY", &value(&new)).unwrap().same_as(&written));
            if present.is_none() {
                prop_assert!(remove(&written, "KEY").unwrap().same_as(&before));
            }
        }

        #[test]
        fn h108_no_value_adds_or_changes_a_name(text in "([A-Z=:'\"$\\\\# \t\r\n]|KEY|export ){0,24}", new in a_value()) {
            let Ok(before) = Readings::of(text.as_bytes()) else { return Ok(()) };
            let Ok(written) = set(&value(&text), "KEY", &value(&new)) else { return Ok(()) };
            let after = names(written.expose());
            let had = before.named.iter().any(|(name, _)| name == b"KEY");
            prop_assert_eq!(after.len(), before.named.len() + usize::from(!had));
            let others = names(text.as_bytes()).into_iter().filter(|(name, _)| name != b"KEY");
            prop_assert!(others.eq(after.iter().filter(|(name, _)| name != b"KEY").cloned()));
            prop_assert!(after.contains(&(b"KEY".to_vec(), Some(new.into_bytes()))));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(written) = set(&value(&bytes), "KEY", &value("new")) {
                prop_assert!(read(&written, "KEY").unwrap().is_some());
            }
        }
    }
}
