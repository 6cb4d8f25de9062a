//! The policy of the process, used where none is given.

use std::sync::{PoisonError, RwLock};

use super::{PrecisionPolicy, Preset};

/// A policy is copied in one piece, so a panic elsewhere cannot leave it half written: poisoning is ignored.
static DEFAULT: RwLock<PrecisionPolicy> = RwLock::new(Preset::Bf16.policy());

/// The policy used where none is given: [`Preset::Bf16`] unless it was set.
pub fn default_policy() -> PrecisionPolicy {
    *DEFAULT.read().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the policy used where none is given, for the whole process.
pub fn set_default_policy(policy: PrecisionPolicy) {
    *DEFAULT.write().unwrap_or_else(PoisonError::into_inner) = policy;
}

/// Makes [`Preset::Bf16`] the default again.
pub fn reset_default_policy() {
    set_default_policy(Preset::Bf16.policy());
}

/// The given policy, or the default of the process.
pub fn resolve(policy: Option<PrecisionPolicy>) -> PrecisionPolicy {
    policy.unwrap_or_else(default_policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The only test that touches the default, because tests of one binary run at the same time.
    #[test]
    fn default_is_read_set_and_reset() {
        assert_eq!(default_policy(), Preset::Bf16.policy());
        set_default_policy(Preset::HighPrecision.policy());
        assert_eq!(default_policy(), Preset::HighPrecision.policy());
        assert_eq!(resolve(None), Preset::HighPrecision.policy());
        assert_eq!(resolve(Some(Preset::F32.policy())), Preset::F32.policy());

        let poisoned = std::thread::spawn(|| {
            let _guard = DEFAULT.write();
            panic!("poisons the lock");
        });
        assert!(poisoned.join().is_err());
        assert_eq!(default_policy(), Preset::HighPrecision.policy());
        reset_default_policy();
        assert_eq!(default_policy(), Preset::Bf16.policy());
    }
}
