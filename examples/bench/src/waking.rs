use crate::{Effort, Measured, report::Report};
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Flags {}
pub(crate) fn run(_: &Flags) -> Measured<()> {
    Ok(())
}
pub(crate) fn measure(_: Effort, _: &mut Report) -> Measured<()> {
    Ok(())
}
