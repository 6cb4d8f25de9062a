//! The rotary embedding in `config.json`: `rope_theta` and `rope_scaling` as transformers 4 wrote them,
//! `rope_parameters` as transformers 5 does.

use super::{Architecture, ConfigError, MAX_CONTEXT, fields::Fields};
use crate::rope::{Llama3, LongRope, RopeConfig, RopeScaling, Yarn, YarnRamp};

/// What transformers takes where no file names a base.
const DEFAULT_THETA: f64 = 10_000.0;

const SUPPORTED: &str = "default, linear, llama3, yarn, longrope";

/// Reads the rotary embedding of a model with heads of `head_dim` and a context of `context` tokens.
pub(super) fn read(
    root: Fields<'_>,
    architecture: Architecture,
    head_dim: usize,
    context: usize,
) -> Result<RopeConfig, ConfigError> {
    let scaling = root.object("rope_scaling")?;
    let inner = match scaling {
        Some(scaling) => Some(scaling),
        None => root.object("rope_parameters")?,
    };
    // Keys of transformers 5 live in the inner object, those of transformers 4 beside it.
    let places = [inner, Some(root)];
    let first = |key: &str| places.iter().flatten().find(|place| place.contains(key)).copied();

    let theta = match first("rope_theta") {
        Some(place) => place.positive("rope_theta")?.unwrap_or(DEFAULT_THETA),
        None => DEFAULT_THETA,
    };
    if theta <= 1.0 {
        return Err(root.invalid("rope_theta", "a number above 1", theta));
    }
    let partial = match first("partial_rotary_factor") {
        Some(place) => place.positive("partial_rotary_factor")?.unwrap_or(1.0),
        None => 1.0,
    };
    if partial > 1.0 || (partial != 1.0 && architecture != Architecture::Phi3) {
        return Err(root.unsupported(
            "partial_rotary_factor",
            partial,
            "at most 1 for phi3, 1 for the other architectures",
        ));
    }
    let scaling = match inner {
        Some(inner) => read_scaling(root, inner, architecture, context)?,
        None => RopeScaling::Default,
    };
    // Truncated as transformers does: `int(head_dim * partial_rotary_factor)`.
    Ok(RopeConfig { theta, rotary_dim: (head_dim as f64 * partial) as usize, scaling })
}

fn read_scaling(
    root: Fields<'_>,
    inner: Fields<'_>,
    architecture: Architecture,
    context: usize,
) -> Result<RopeScaling, ConfigError> {
    for layer_type in ["full_attention", "sliding_attention"] {
        if inner.contains(layer_type) {
            return Err(inner.unsupported(
                layer_type,
                "with frequencies of its own",
                "one set for all layers",
            ));
        }
    }
    let key = if inner.contains("rope_type") { "rope_type" } else { "type" };
    let kind = inner.text(key)?.unwrap_or("default");
    // Early Phi-3 files say "su", or "yarn" without meaning it; transformers reads both as longrope.
    let kind = match (architecture, kind) {
        (Architecture::Phi3, "su" | "yarn") => "longrope",
        _ => kind,
    };
    match kind {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: inner.require_positive("factor")? }),
        "llama3" => read_llama3(inner, original_context(root, inner, context)?),
        "yarn" => read_yarn(inner, original_context(root, inner, context)?, context),
        "longrope" => read_longrope(inner, original_context(root, inner, context)?, context),
        unknown => Err(inner.unsupported(key, format!("{unknown:?}"), SUPPORTED)),
    }
}

/// The context of the first training: beside the inner object (Phi-3), inside it, or the whole context. At least 2,
/// because its logarithm divides.
fn original_context(root: Fields<'_>, inner: Fields<'_>, context: usize) -> Result<usize, ConfigError> {
    const KEY: &str = "original_max_position_embeddings";
    for place in [root, inner] {
        match place.size(KEY, MAX_CONTEXT)? {
            Some(1) => return Err(place.invalid(KEY, "at least 2", 1)),
            Some(original) => return Ok(original),
            None => {}
        }
    }
    Ok(context)
}

fn read_llama3(inner: Fields<'_>, original_context: usize) -> Result<RopeScaling, ConfigError> {
    let low_freq_factor = inner.require_positive("low_freq_factor")?;
    let high_freq_factor = inner.require_positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        let wanted = format!("a number above low_freq_factor = {low_freq_factor}");
        return Err(inner.invalid("high_freq_factor", wanted, high_freq_factor));
    }
    let factor = inner.require_positive("factor")?;
    Ok(RopeScaling::Llama3(Llama3 { factor, low_freq_factor, high_freq_factor, original_context }))
}

fn read_yarn(inner: Fields<'_>, original_context: usize, context: usize) -> Result<RopeScaling, ConfigError> {
    let factor = inner.positive("factor")?.unwrap_or(context as f64 / original_context as f64);
    // transformers takes a zero as absent.
    let given = |key| inner.number(key).map(|number| number.filter(|&number| number != 0.0));
    let turns = |key, default: f64| match given(key)? {
        Some(turns) if turns < 0.0 => Err(inner.invalid(key, "a positive number", turns)),
        turns => Ok(turns.unwrap_or(default)),
    };
    let ramp = match inner.bool("truncate")? {
        Some(false) => YarnRamp::Exact,
        Some(true) | None => YarnRamp::WholeDimensions,
    };
    Ok(RopeScaling::Yarn(Yarn {
        factor,
        beta_fast: turns("beta_fast", 32.0)?,
        beta_slow: turns("beta_slow", 1.0)?,
        attention_factor: inner.positive("attention_factor")?,
        mscale: given("mscale")?.zip(given("mscale_all_dim")?),
        original_context,
        ramp,
    }))
}

fn read_longrope(
    inner: Fields<'_>,
    original_context: usize,
    context: usize,
) -> Result<RopeScaling, ConfigError> {
    let factor = inner.positive("factor")?.unwrap_or(context as f64 / original_context as f64);
    Ok(RopeScaling::LongRope(LongRope {
        short_factor: inner.require_positives("short_factor")?,
        long_factor: inner.require_positives("long_factor")?,
        factor,
        attention_factor: inner.positive("attention_factor")?,
        original_context,
    }))
}
