//! Compose's own dotenv grammar, read into spans so that one value can change and no other byte does (H103).
//!
//! The grammar is that of the Compose Specification's reference library: optional `export`, `NAME=…` or `NAME: …`, a bare
//! `NAME` that is inherited, plain values cut at ` #`, double quotes with escapes and expansion, single quotes that take
//! everything but `\'` as it stands. A file that Compose would not read is refused, and never guessed at.
//!
//! Every edit is read back: the whole new text is parsed again, and counts only if the owned name reads as its new value
//! and every other name as before (H99, H107, H108).

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
    let mut found = statements.iter().filter(|s| &text[s.name.clone()] == name.as_bytes());
    let first = found.next().cloned();
    if found.next().is_some() { Err(DotenvError::Twice { name: name.into() }) } else { Ok(first) }
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
    DotenvError::Malformed { line: 1 + text[..at].iter().filter(|b| **b == b'\n').count() }
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
