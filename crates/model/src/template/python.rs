//! Habits of Python that templates count on and the engine does not have.

use minijinja::{
    Error, ErrorKind, Output, State, Value, escape_formatter, filters,
    value::{Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

/// Methods of Python's values.
pub(super) fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, method, args);
    };
    match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "rsplit" => {
            let (separator, most): (&str, Option<usize>) = from_args(args)?;
            rsplit(text, separator, most)
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, middle, after) = match text.split_once(separator) {
                Some((before, after)) => (before, separator, after),
                None => (text, "", ""),
            };
            Ok(Value::from(Tuple::from([before, middle, after].map(Value::from))))
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn rsplit(text: &str, separator: &str, most: Option<usize>) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "rsplit: the separator is empty"));
    }
    let pieces = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<Value> = text.rsplitn(pieces, separator).map(Value::from).collect();
    parts.reverse();
    Ok(Value::from(parts))
}

/// The filter `length`: what is undefined has none.
pub(super) fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { filters::length(value) }
}

/// Prints `{{ value }}`: numbers as Python does.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        let text = float(f64::try_from(value.clone())?, "nan", "inf");
        return escape_formatter(out, state, &Value::from(text));
    }
    escape_formatter(out, state, value)
}

/// The shortest digits that read back as the same number, as Python's `repr` lays them out; `nan` and `inf` are the
/// words for what has no digits.
pub(super) fn float(value: f64, nan: &str, inf: &str) -> String {
    if value.is_nan() {
        return nan.to_owned();
    }
    if value.is_infinite() {
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}{inf}");
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_those_of_python() {
        let cases = [
            (0.1, "0.1"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.5e300, "-1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ];
        for (value, text) in cases {
            assert_eq!(float(value, "nan", "inf"), text);
        }
    }

    #[test]
    fn methods_are_those_of_python() {
        let mut environment = minijinja::Environment::new();
        environment.set_unknown_method_callback(method);
        let render = |source: &str| environment.render_str(source, ()).map_err(|error| error.to_string());
        for (source, expected) in [
            ("{{ 'aab'.removeprefix('a') }} {{ 'ab'.removeprefix('b') }}", "ab ab"),
            ("{{ 'abb'.removesuffix('b') }} {{ 'ab'.removesuffix('a') }}", "ab ab"),
            ("{{ 'a.b.c'.rsplit('.') }} {{ 'a.b.c'.rsplit('.', 1) }}", "['a', 'b', 'c'] ['a.b', 'c']"),
            ("{{ 'k=v=w'.partition('=') }} {{ 'k'.partition('=') }}", "('k', '=', 'v=w') ('k', '', '')"),
            ("{{ 'ab'.upper() }} {{ {'k': 1}.get('k') }}", "AB 1"),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
        assert!(render("{{ 'a'.rsplit('') }}").unwrap_err().contains("the separator is empty"));
        assert!(render("{{ 'a'.nothing() }}").unwrap_err().contains("no method named nothing"));
    }
}
