//! JSON as Python's `json.dumps` writes it, to the space: models saw their tools in this form.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

use super::python::float;

/// How a value is written.
struct Style {
    ascii: Ascii,
    /// What one level is indented by; everything on one line without it.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    keys: Keys,
}

/// Whether characters beyond ASCII are escaped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ascii {
    Escape,
    Keep,
}

/// Order of an object's keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    AsGiven,
    Sorted,
}

/// The filter `tojson` of transformers: `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    arguments: Kwargs,
) -> Result<Value, Error> {
    let argument = |positional: Option<Value>, name: &str| match positional {
        Some(value) => Ok(Some(value)),
        None => arguments.get::<Option<Value>>(name),
    };
    let ascii = argument(ensure_ascii, "ensure_ascii")?;
    let indent = match argument(indent, "indent")? {
        Some(indent) => indent_of(&indent)?,
        None => None,
    };
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let sort_keys: Option<Value> = arguments.get("sort_keys")?;
    arguments.assert_all_used()?;
    let (item_separator, key_separator) = match separators.as_deref() {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(invalid("tojson: separators are two texts, one after items and one after keys"));
        }
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style = Style {
        ascii: if is_true(ascii) { Ascii::Escape } else { Ascii::Keep },
        indent,
        item_separator,
        key_separator,
        keys: if is_true(sort_keys) { Keys::Sorted } else { Keys::AsGiven },
    };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

/// `indent` is a number of spaces, a text, or none.
fn indent_of(indent: &Value) -> Result<Option<String>, Error> {
    const MOST: i64 = 64;
    if indent.is_none() || indent.is_undefined() {
        return Ok(None);
    }
    if let Some(text) = indent.as_str() {
        return Ok(Some(text.to_owned()));
    }
    match i64::try_from(indent.clone()) {
        Ok(spaces) if spaces <= MOST => Ok(Some(" ".repeat(usize::try_from(spaces).unwrap_or(0)))),
        _ => Err(invalid(format!("tojson: indent is a number up to {MOST} or a text, not {indent}"))),
    }
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)?),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect::<Vec<Value>>();
                self.write_items('[', ']', &items, depth, out, |item, out| self.write(item, depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    entries.push((key_text(&key)?, item));
                }
                if self.keys == Keys::Sorted {
                    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.write_items('{', '}', &entries, depth, out, |(key, item), out| {
                    self.write_text(key, out);
                    out.push_str(&self.key_separator);
                    self.write(item, depth + 1, out)
                })?;
            }
            kind => return Err(invalid(format!("tojson: a value of kind {kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    fn write_items<T>(
        &self,
        open: char,
        close: char,
        items: &[T],
        depth: usize,
        out: &mut String,
        write: impl Fn(&T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item_separator);
            }
            self.break_line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.break_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn break_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii == Ascii::Escape && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Keys that are no texts are written as Python does.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => number(key),
        kind => Err(invalid(format!("tojson: a key of kind {kind} cannot be written as JSON"))),
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        Ok(value.to_string())
    } else {
        Ok(float(f64::try_from(value.clone())?, "NaN", "Infinity"))
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;

    fn render(expression: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        let json = serde_json::from_str(
            r#"{"b": [1, -2.5, true, null], "a": {"t": "<é\u0001\"\\\n🦙>"}, "e": [], "o": {}}"#,
        );
        let context = Value::from_pairs([("x", super::super::value_of(json.unwrap()))]);
        environment.render_str(&format!("{{{{ {expression} }}}}"), context).unwrap()
    }

    #[test]
    fn layout_is_that_of_python() {
        assert_eq!(
            render("x|tojson"),
            r#"{"b": [1, -2.5, true, null], "a": {"t": "<é\u0001\"\\\n🦙>"}, "e": [], "o": {}}"#
        );
        assert_eq!(
            render("x|tojson(ensure_ascii=true, sort_keys=true, separators=[',', ':'])"),
            r#"{"a":{"t":"<\u00e9\u0001\"\\\n\ud83e\udd99>"},"b":[1,-2.5,true,null],"e":[],"o":{}}"#
        );
        assert_eq!(render("{'k': [1, {}]}|tojson(indent=2)"), "{\n  \"k\": [\n    1,\n    {}\n  ]\n}");
        assert_eq!(render("[1]|tojson(indent=0)"), "[\n1\n]");
        assert_eq!(render("[1]|tojson(indent='\t')"), "[\n\t1\n]");
        assert_eq!(render("(1, 2)|tojson(false, 1)"), "[\n 1,\n 2\n]");
        assert_eq!(render("{1: 2, none: 3, false: 4}|tojson"), r#"{"1": 2, "null": 3, "false": 4}"#);
        assert_eq!(render("[1e16, 1e400]|tojson"), "[1e+16, Infinity]");
    }

    #[test]
    fn what_json_cannot_say_is_an_error() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        for (expression, problem) in [
            ("missing|tojson", "undefined cannot be written"),
            ("1|tojson(indent=1000)", "indent is a number up to 64"),
            ("1|tojson(separators=['a'])", "separators are two texts"),
            ("1|tojson(width=3)", "width"),
        ] {
            let error = environment.render_str(&format!("{{{{ {expression} }}}}"), ()).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
    }
}
