//! Preferences as typed values: what a user may ask of the choice of kernels, and by which names.
//!
//! They come as values from whoever read them; nothing here looks at the environment.

/// A name that no choice of a preference has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} \"{got}\"; there are {allowed}")]
pub struct UnknownPreference {
    /// What was to be chosen.
    pub what: &'static str,
    /// The name given.
    pub got: String,
    /// The names there are.
    pub allowed: String,
}

impl UnknownPreference {
    pub(crate) fn new(what: &'static str, got: &str, names: &[&str]) -> UnknownPreference {
        let (last, others) = names.split_last().unwrap_or((&"none", &[]));
        let allowed =
            if others.is_empty() { (*last).to_owned() } else { format!("{} and {last}", others.join(", ")) };
        UnknownPreference { what, got: got.to_owned(), allowed }
    }
}

/// Defines an enum whose variants have the names by which users choose them; the first is the default.
macro_rules! preference {
    (
        $(#[$meta:meta])* $name:ident: $what:literal;
        $(#[$first_meta:meta])* $first:ident = $first_text:literal,
        $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[$first_meta])*
            #[default]
            $first,
            $($(#[$variant_meta])* $variant,)*
        }

        impl $name {
            /// Every choice.
            pub const ALL: &[$name] = &[$name::$first, $($name::$variant),*];

            /// The name by which it is chosen.
            pub const fn name(self) -> &'static str {
                match self {
                    $name::$first => $first_text,
                    $($name::$variant => $text,)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::preferences::UnknownPreference;

            fn from_str(text: &str) -> Result<$name, Self::Err> {
                let found = $name::ALL.iter().find(|choice| choice.name() == text);
                found.copied().ok_or_else(|| {
                    $crate::preferences::UnknownPreference::new($what, text, &[$first_text, $($text),*])
                })
            }
        }
    };
}
pub(crate) use preference;

#[cfg(test)]
mod tests {
    use crate::families::products::{MatmulBackend, VariantPreference};
    use crate::families::softmax::{GroupPreference, VariantPreference as SoftmaxVariant};
    use crate::families::token::DecodeVariant;

    fn names<T: std::str::FromStr + Copy + PartialEq + std::fmt::Debug + ToString>(
        all: &[T],
        expected: &[&str],
    ) {
        assert_eq!(all.iter().map(T::to_string).collect::<Vec<_>>(), expected);
        for (choice, name) in all.iter().zip(expected) {
            assert_eq!(name.parse::<T>().ok(), Some(*choice));
        }
        assert!("Auto".parse::<T>().is_err() && "".parse::<T>().is_err());
    }

    #[test]
    fn every_choice_is_written_as_it_is_read() {
        names(MatmulBackend::ALL, &["auto", "cublaslt", "own"]);
        names(VariantPreference::ALL, &["auto", "smalln", "gemm"]);
        names(SoftmaxVariant::ALL, &["auto", "vec", "block"]);
        names(DecodeVariant::ALL, &["auto", "graph", "token"]);
        names(GroupPreference::ALL, &["auto", "32", "64", "128"]);
    }

    #[test]
    fn a_wrong_name_is_told_which_there_are() {
        let error = "cublas".parse::<MatmulBackend>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no matmul backend \"cublas\"; there are auto, cublaslt and own"
        );
    }
}
