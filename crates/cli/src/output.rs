//! What goes to the streams and to files: errors, results, progress.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mantissa_lab::LabError;
use mantissa_lab::plot::Picture;

use crate::interrupt::{self, Interrupted};

/// Standard output, which loses colours where they are not wanted. Write with `writeln!` and `?`: a closed pipe is then
/// a quiet end of the process, where `println!` would panic.
pub fn stdout() -> anstream::AutoStream<io::StdoutLock<'static>> {
    anstream::AutoStream::auto(io::stdout()).lock()
}

/// Standard output as it is, for text that must not be touched, such as a model's.
pub fn raw_stdout() -> io::StdoutLock<'static> {
    io::stdout().lock()
}

/// Standard error, without colours where they are not wanted.
pub fn stderr() -> anstream::AutoStream<io::StderrLock<'static>> {
    anstream::AutoStream::auto(io::stderr()).lock()
}

/// Prints a value as one line of JSON.
pub fn json(value: &impl serde::Serialize) -> Result<()> {
    let mut out = stdout();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Prints an error, one problem a line with its causes, and gives the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let cancelled = matches!(error.downcast_ref(), Some(LabError::Cancelled));
    if error.is::<Interrupted>() || cancelled {
        return ExitCode::from(interrupt::EXIT_CODE);
    }
    let closed = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<io::Error>();
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.map(io::Error::kind).or(json) == Some(io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(closed) {
        // Whoever read the output has had enough.
        return ExitCode::SUCCESS;
    }
    let style = Style::new().fg_color(Some(AnsiColor::Red.into())).bold();
    let mut out = stderr();
    // Nothing is left to do where standard error cannot be written either.
    let _ = writeln!(out, "{style}error:{style:#} {}", message(error));
    ExitCode::FAILURE
}

/// The error with its causes, each said once: library errors often repeat their source's text.
fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A progress bar over bytes on standard error, drawn only on a terminal.
pub fn byte_bar(label: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), target());
    if let Ok(style) =
        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(label);
    bar
}

/// A progress bar over things that are counted, on standard error, drawn only on a terminal.
pub fn count_bar(label: impl Into<Cow<'static, str>>, things: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), target());
    let template = format!("{{msg}} [{{bar:30}}] {{pos}}/{{len}} {things} {{eta}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(label);
    bar
}

/// A bar over the parts of a measurement, on standard error, drawn only on a terminal.
pub fn measuring_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), target());
    if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {pos}/{len} {elapsed} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn target() -> ProgressDrawTarget {
    if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// Refuses places where [`write_atomically`] could not write, so that nothing is measured in vain.
pub fn check_writable<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    for path in paths {
        let temporary = beside(path)?;
        File::create(&temporary).with_context(|| format!("cannot write {}", path.display()))?;
        drop(Partial(Some(temporary)));
    }
    Ok(())
}

/// Where a file is written before it takes its place.
fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    Ok(path.with_file_name(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id())))
}

/// Writes a file so that it is there whole or not at all: beside its place first, then renamed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let temporary = beside(path)?;
    let removed_on_error = Partial(Some(temporary.clone()));
    let file = File::create(&temporary).with_context(|| format!("cannot write {}", path.display()))?;
    let mut writer = io::BufWriter::new(file);
    write(&mut writer).with_context(|| format!("cannot write {}", path.display()))?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all().with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))?;
    removed_on_error.keep();
    Ok(())
}

/// Writes a plot into a folder, which comes into being where there is none: `NAME.svg` and `NAME.png`.
pub fn write_picture(folder: &Path, name: &str, picture: &Picture) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let pixels = picture.png()?;
    for (ending, bytes) in [("svg", picture.svg().as_bytes()), ("png", &pixels)] {
        write_atomically(&folder.join(format!("{name}.{ending}")), |out| Ok(out.write_all(bytes)?))?;
    }
    Ok(())
}

/// A file that is removed unless it is kept.
struct Partial(Option<PathBuf>);

impl Partial {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may never have come into being; the error that led here is the one to report.
            let _ = std::fs::remove_file(path);
        }
    }
}
