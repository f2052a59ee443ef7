//! A deployment under way: what becomes of it, and how it is cancelled.

mod output;

use std::io::{self, Write};

use api::{DeployEvent, Deployment};
use client::{Client, Deploying};
use model::{FunctionName, Plain};
use output::BuildOutput;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    format::{micros, size},
    out::Out,
    progress::Progress,
};
use crate::exit::{Failure, Fatal};

pub(super) fn interrupted(what_now: &str) -> anyhow::Error {
    Fatal::new(Failure::Interrupted, format!("interrupted: {what_now}")).into()
}

/// Ctrl-C, or what a supervisor sends instead.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// From here on these signals do not end the program.
    pub(super) fn listen() -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// How much is told.
#[derive(Clone, Copy)]
pub(super) struct Told {
    /// On standard output each event, as JSON.
    pub(super) is_json: bool,
    /// On standard error what is sent, and how long each step takes.
    pub(super) is_verbose: bool,
}

/// Tells what becomes of a deployment.
pub(super) struct Report<'a> {
    client: &'a Client,
    name: &'a FunctionName,
    told: Told,
    progress: Progress,
    interrupts: Interrupts,
    /// None if the daemon does not say what to cancel.
    id: Option<String>,
    is_cancelled: bool,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        client: &'a Client,
        name: &'a FunctionName,
        told: Told,
        progress: Progress,
        interrupts: Interrupts,
    ) -> Self {
        Self { client, name, told, progress, interrupts, id: None, is_cancelled: false }
    }

    /// Until the deployment serves or has failed.
    pub(super) async fn follow(mut self, deploying: Deploying) -> anyhow::Result<()> {
        let Deploying { id, mut events } = deploying;
        self.id = id;
        if let Some(id) = self.id.as_ref().filter(|_| self.told.is_verbose) {
            self.progress.aside(|| output::print(&format!("deployment {}\n", Plain(id))));
        }
        let mut step_now: Option<String> = None;
        let mut out = Out::new();
        let mut build = BuildOutput::default();
        loop {
            let event = tokio::select! {
                event = self.progress.wait(events.next()) => event?,
                () = self.interrupts.next() => {
                    self.cancel().await?;
                    continue;
                }
            };
            let Some(event) = event else { break };
            if self.told.is_json {
                out.json_line(&event)?;
            }
            let is_step_over = !matches!(event, DeployEvent::Output { .. });
            if let Some(step) = step_now.take_if(|_| self.told.is_verbose && is_step_over) {
                let took = micros(u64::try_from(self.progress.elapsed().as_micros()).unwrap_or(0));
                self.progress.aside(|| output::print(&format!("{step} took {took}\n")));
            }
            match event {
                DeployEvent::Step { step } => {
                    let step = Plain(&step).to_string();
                    self.progress.step(&step);
                    step_now = Some(step);
                }
                DeployEvent::Output { .. } if self.told.is_json => {}
                DeployEvent::Output { text } => {
                    let lines = build.add(&text);
                    self.progress.aside(|| output::print(&lines));
                }
                DeployEvent::Active { deployment, url } => {
                    let rest = build.finish();
                    self.progress.aside(|| output::print(&rest));
                    return self.active(&deployment, &url, out);
                }
                DeployEvent::Failed { step, message } => {
                    let rest = build.finish();
                    self.progress.aside(|| output::print(&rest));
                    return Err(self.failed(&step, &message));
                }
            }
        }
        anyhow::bail!(
            "the daemon stopped telling before the deployment was over; \
             `hearth show {}` says what became of it",
            self.name
        )
    }

    /// The first interrupt cancels the deployment, of which the events tell the end; the second one
    /// leaves it to the daemon.
    async fn cancel(&mut self) -> anyhow::Result<()> {
        let show = format!("`hearth show {}` says what becomes of it", self.name);
        if self.is_cancelled {
            return Err(interrupted(&format!("the deployment was told to end; {show}")));
        }
        let Some(id) = &self.id else {
            return Err(interrupted(&format!("the deployment goes on; {show}")));
        };
        self.is_cancelled = true;
        self.progress.aside(|| output::print("cancelling the deployment\n"));
        tokio::select! {
            // Where it is over already, its last event is on the way.
            answer = self.client.cancel_deployment(self.name, id) => match answer {
                Ok(_) => Ok(()),
                Err(error) => Err(interrupted(&format!(
                    "the deployment could not be cancelled ({error}) and may go on; {show}"
                ))),
            },
            () = self.interrupts.next() => {
                Err(interrupted(&format!("the deployment may go on; {show}")))
            }
        }
    }

    fn active(self, deployment: &Deployment, url: &str, mut out: Out) -> anyhow::Result<()> {
        // The bar must be gone before the last words.
        drop(self.progress);
        let name = self.name;
        if !self.told.is_json {
            let (runtime, artifact) = (Plain(&deployment.runtime), size(deployment.artifact_bytes));
            let text = format!(
                "{name} is active ({runtime}, {artifact}); call it with `hearth invoke {name}`\n"
            );
            output::print(&text);
            writeln!(out, "{}", Plain(url))?;
        }
        if self.is_cancelled {
            return Err(interrupted("it was too late to cancel the deployment, which is active"));
        }
        Ok(())
    }

    /// What the source is to blame for has a code of its own.
    fn failed(&self, step: &str, message: &str) -> anyhow::Error {
        if self.is_cancelled {
            return interrupted(&format!(
                "the deployment ended in step `{step}` ({message}); what served before still does"
            ));
        }
        let message = format!("the deployment failed in step `{step}`: {message}");
        match step {
            "unpack" | "build" | "start" => Fatal::new(Failure::Source, message).into(),
            _ => anyhow::Error::msg(message),
        }
    }
}
