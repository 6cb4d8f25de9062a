//! The environment variables that have no option on the command line. This and clap's `env` attributes are the only
//! places in Mantissa that read the environment.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, bail};
use mantissa::model::hub::HubSettings;

/// How to reach Hugging Face, by the variables that its own tools use.
pub fn hub_settings() -> Result<HubSettings> {
    let home = match non_empty("HF_HOME") {
        Some(path) => Some(PathBuf::from(path)),
        None => env::home_dir().map(|home| home.join(".cache").join("huggingface")),
    };
    Ok(HubSettings {
        endpoint: text("HF_ENDPOINT")?,
        cache_home: home,
        token: text("HF_TOKEN")?,
        offline: offline()?,
    })
}

fn offline() -> Result<bool> {
    let value = text("HF_HUB_OFFLINE")?.unwrap_or_default();
    match value.to_ascii_lowercase().as_str() {
        "" | "0" | "false" | "no" | "off" => Ok(false),
        "1" | "true" | "yes" | "on" => Ok(true),
        _ => bail!(
            "HF_HUB_OFFLINE is \"{value}\"; it must be 1, true, yes or on, or else 0, false, no, off or unset"
        ),
    }
}

/// Where lines typed in `mantissa chat` are kept, by the conventions of the system.
pub fn history_file() -> Option<PathBuf> {
    let data = if cfg!(windows) {
        PathBuf::from(non_empty("APPDATA")?)
    } else if let Some(path) = non_empty("XDG_DATA_HOME") {
        PathBuf::from(path)
    } else if cfg!(target_os = "macos") {
        env::home_dir()?.join("Library").join("Application Support")
    } else {
        env::home_dir()?.join(".local").join("share")
    };
    Some(data.join("mantissa").join("chat_history.txt"))
}

/// What was typed to start this program, with its preferences from the environment in front, as a shell takes it.
pub fn command_line() -> String {
    // Where libraries and compiled kernels lie is the machine's matter.
    const PATHS: [&str; 3] = ["MANTISSA_KERNEL_CACHE", "MANTISSA_NVRTC", "MANTISSA_CUBLASLT"];
    let ours = |name: &str| {
        name.starts_with("MANTISSA_") && !name.starts_with("MANTISSA_TEST_") && !PATHS.contains(&name)
    };
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let variables = env::vars_os().map(|(name, value)| (text(name), text(value)));
    let mut words: Vec<String> = variables
        .filter(|(name, _)| ours(name))
        .map(|(name, value)| format!("{name}={}", quoted(&value)))
        .collect();
    words.sort();
    words.push("mantissa".to_owned());
    words.extend(env::args_os().skip(1).map(|word| quoted(&text(word))));
    words.join(" ")
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_=,./:+@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Variables that look like this program's and are not among those that it knows: most likely misspelt.
pub fn unknown_variables(known: &[OsString]) -> Vec<String> {
    let all = env::vars_os().map(|(name, _)| name);
    unknown(all, known)
}

fn unknown(all: impl Iterator<Item = OsString>, known: &[OsString]) -> Vec<String> {
    let unknown = all.filter(|name| !known.contains(name)).filter_map(|name| name.into_string().ok());
    // Those of the tests are not for users.
    let mut unknown: Vec<String> =
        unknown.filter(|name| name.starts_with("MANTISSA_") && !name.starts_with("MANTISSA_TEST_")).collect();
    unknown.sort();
    unknown
}

fn non_empty(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn text(name: &str) -> Result<Option<String>> {
    match non_empty(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => bail!("{name} is not valid UTF-8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_break_them() {
        assert_eq!(quoted("bf16,kv_cache=f8e4m3"), "bf16,kv_cache=f8e4m3");
        assert_eq!(quoted("my model"), "'my model'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn misspelt_variables_are_found() {
        let names =
            ["MANTISSA_POLICY", "MANTISSA_MATMUL_BAKCEND", "PATH", "MANTISSA_TEST_DEVICE", "mantissa_x"];
        let known = [OsString::from("MANTISSA_POLICY")];
        assert_eq!(unknown(names.iter().map(OsString::from), &known), ["MANTISSA_MATMUL_BAKCEND"]);
    }
}
