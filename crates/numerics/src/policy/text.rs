//! The text and table forms of a policy.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};

use super::{Field, PolicyError, PrecisionPolicy, Preset};
use crate::format::Format;

/// The key that names the preset in a table.
const PRESET_KEY: &str = "preset";

impl FromStr for Field {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Field, PolicyError> {
        Field::ALL
            .into_iter()
            .find(|field| field.name() == text)
            .ok_or_else(|| PolicyError::UnknownField(text.to_owned()))
    }
}

impl FromStr for Preset {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Preset, PolicyError> {
        Preset::ALL
            .into_iter()
            .find(|preset| preset.name() == text)
            .ok_or_else(|| PolicyError::UnknownPreset(text.to_owned()))
    }
}

/// Overrides collected so far, so that a field given twice is noticed whatever its values.
#[derive(Default)]
struct Overrides(Vec<(Field, Format)>);

impl Overrides {
    fn add(&mut self, field: &str, value: &str) -> Result<(), PolicyError> {
        let field: Field = field.parse()?;
        if self.0.iter().any(|(earlier, _)| *earlier == field) {
            return Err(PolicyError::Repeated(field));
        }
        let not_allowed = || PolicyError::NotAllowed { field, value: value.to_owned() };
        let format: Format = value.parse().map_err(|_| not_allowed())?;
        self.0.push((field, format));
        Ok(())
    }

    fn apply(self, preset: Option<Preset>) -> Result<PrecisionPolicy, PolicyError> {
        let base = preset.map_or_else(PrecisionPolicy::default, Preset::policy);
        self.0.into_iter().try_fold(base, |policy, (field, format)| policy.with(field, format))
    }
}

/// Reads `preset`, `preset,field=format,...` or `field=format,...` (on top of [`Preset::Bf16`]). White space around
/// names does not matter.
impl FromStr for PrecisionPolicy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<PrecisionPolicy, PolicyError> {
        let mut preset = None;
        let mut overrides = Overrides::default();
        for (place, part) in text.split(',').map(str::trim).enumerate() {
            match part.split_once('=') {
                Some((field, value)) => overrides.add(field.trim(), value.trim())?,
                None if part.is_empty() => return Err(PolicyError::Empty),
                None => {
                    let named = part.parse()?;
                    if place > 0 {
                        return Err(PolicyError::PresetNotFirst(named));
                    }
                    preset = Some(named);
                }
            }
        }
        overrides.apply(preset)
    }
}

/// The shortest text that reads back as the same policy: the nearest preset, then what differs.
impl fmt::Display for PrecisionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let preset = self.nearest_preset();
        let mut text = preset.name().to_owned();
        for (field, format) in self.overrides(preset) {
            text.push_str(&format!(",{field}={format}"));
        }
        f.pad(&text)
    }
}

/// A table: `preset`, then the fields that differ from it.
impl Serialize for PrecisionPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let preset = self.nearest_preset();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(PRESET_KEY, preset.name())?;
        for (field, format) in self.overrides(preset) {
            map.serialize_entry(field.name(), &format)?;
        }
        map.end()
    }
}

/// A table with `preset` and fields, in any order and all optional, or the text form.
impl<'de> Deserialize<'de> for PrecisionPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PrecisionPolicy, D::Error> {
        deserializer.deserialize_any(PolicyVisitor)
    }
}

struct PolicyVisitor;

impl<'de> de::Visitor<'de> for PolicyVisitor {
    type Value = PrecisionPolicy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a precision policy: a text such as \"bf16,kv_cache=f8e4m3\" or a table of its fields")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<PrecisionPolicy, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<M: de::MapAccess<'de>>(self, mut map: M) -> Result<PrecisionPolicy, M::Error> {
        let mut preset = None;
        let mut overrides = Overrides::default();
        while let Some((key, Word(value))) = map.next_entry::<String, Word>()? {
            if key != PRESET_KEY {
                overrides.add(&key, &value).map_err(de::Error::custom)?;
            } else if preset.replace(value.parse().map_err(de::Error::custom)?).is_some() {
                return Err(de::Error::duplicate_field(PRESET_KEY));
            }
        }
        overrides.apply(preset).map_err(de::Error::custom)
    }
}

/// A scalar as text, so that `weights = 16` is refused with the name of the field like any other wrong value.
struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word, D::Error> {
        struct WordVisitor;

        impl de::Visitor<'_> for WordVisitor {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a format or preset, as a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Word, E> {
                Ok(Word(text.to_owned()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }
        }

        deserializer.deserialize_any(WordVisitor)
    }
}
