//! `keyguard doctor`: looks at a server as someone would who has to answer for it, and says what to do.
//!
//! Every check is one line, or one for each thing that it finds, and none depends on another: what this user may not look at is
//! said to be so, and the rest goes on. [`facts`] is what the server says of itself; the other files are the checks.

mod cluster;
mod facts;
mod keyring;
mod operation;
mod permissions;
mod store;

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde_json::json;

use crate::cli::At;
use crate::failure::Failure;
use crate::reply::Json;
use crate::server::Server;
use cluster::Cluster;
use facts::Facts;

/// What `keyguard doctor` takes.
#[derive(Debug, Args)]
pub struct Options {
    /// Warnings count as problems, for the exit code.
    #[arg(long)]
    strict: bool,
}

/// Looks at everything, and shows what it found.
///
/// # Errors
/// [`Failure::Unwell`] if there is a problem; else why nothing could be looked at.
pub async fn run(at: &At, options: &Options) -> Result<(), Failure> {
    let server = Server::at(&at.url)?;
    let node = server.node();
    let facts = Facts::of(&node).await?;
    let cluster = cluster::cluster(&facts, &node).await;
    let mut findings = of_node(&facts, &node, &server, &at.store).await;
    let mut all = vec![facts];
    if let Some(Cluster { finding, name, others }) = cluster {
        findings.iter_mut().for_each(|finding| finding.node = Some(name.clone()));
        for other in others {
            let name = other.address().to_string();
            let mut of_other = match Facts::of(&other).await {
                Ok(facts) => {
                    let findings = of_node(&facts, &other, &server, &at.store).await;
                    all.push(facts);
                    findings
                }
                Err(failure) => vec![Finding::problem(
                    "server",
                    failure.to_string(),
                    failure.advice().unwrap_or("look at the server's log"),
                )],
            };
            of_other.iter_mut().for_each(|finding| finding.node = Some(name.clone()));
            findings.extend(of_other);
        }
        findings.push(finding);
    }
    findings.push(store::store(&server, &at.store).await);
    findings.push(store::usage(&all, &server, &at.store).await);
    findings.push(store::sizes(&server, &at.store).await);
    if at.json {
        show_json(&findings)?;
    } else {
        show(&findings)?;
    }
    verdict(&findings, options.strict)
}

/// All about one server, which may be one of a cluster.
async fn of_node(facts: &Facts, node: &Server, server: &Server, store: &str) -> Vec<Finding> {
    let mut findings = vec![operation::server(facts, node), operation::module(facts)];
    findings.extend(keyring::keyring(facts, store));
    findings.push(keyring::file(facts, node));
    findings.push(operation::eviction(facts));
    findings.push(operation::memory(facts));
    findings.push(operation::persistence(facts));
    findings.extend(operation::crash_reports(facts));
    findings.push(permissions::of_user(node, store).await);
    findings.extend(cluster::replication(facts, node).await);
    findings.push(operation::snapshots(facts, server, store).await);
    findings.push(operation::waiting(facts));
    findings.extend(operation::rekeying(facts));
    findings
}

/// What a check found.
#[derive(Debug)]
struct Finding {
    /// In a cluster, which of its nodes it is about, if it is about one.
    node: Option<String>,
    check: &'static str,
    state: State,
    detail: String,
    advice: Option<String>,
}

/// How it stands with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Warning,
    Problem,
    /// Nobody can know from here: it lies on another machine, say.
    NotLookedAt,
}

impl State {
    /// Its name in JSON.
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
            Self::NotLookedAt => "not_looked_at",
        }
    }

    /// Its name for people.
    const fn word(self) -> &'static str {
        match self {
            Self::NotLookedAt => "not seen",
            other => other.name(),
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::Ok => AnsiColor::Green.on_default(),
            Self::Warning => AnsiColor::Yellow.on_default().bold(),
            Self::Problem => AnsiColor::Red.on_default().bold(),
            Self::NotLookedAt => Style::new().dimmed(),
        }
    }
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { node: None, check, state: State::Ok, detail: detail.into(), advice: None }
    }

    fn warning(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { node: None, check, state: State::Warning, detail: detail.into(), advice: Some(advice.into()) }
    }

    fn problem(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { node: None, check, state: State::Problem, detail: detail.into(), advice: Some(advice.into()) }
    }

    fn not_looked_at(check: &'static str, why: impl Into<String>) -> Self {
        Self { node: None, check, state: State::NotLookedAt, detail: why.into(), advice: None }
    }

    /// What could not be asked. That a user may not look is no problem of the server's, but nothing is well that is not
    /// known; that it does not answer is one.
    fn unanswered(check: &'static str, failure: &Failure) -> Self {
        let advice = failure.advice().unwrap_or("look at the server's log");
        match failure {
            Failure::Unreachable(_) | Failure::Misconfigured(_) => Self::problem(check, failure.to_string(), advice),
            Failure::NotPermitted(_) => Self::warning(check, format!("unknown: {failure}"), advice),
            _ => Self::not_looked_at(check, failure.to_string()),
        }
    }
}

fn show(findings: &[Finding]) -> io::Result<()> {
    let mut output = anstream::stdout();
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    for Finding { node, check, state, detail, advice } in findings {
        let (style, word) = (state.style(), state.word());
        let node = node.as_ref().map_or_else(String::new, |node| format!("{node}: "));
        writeln!(output, "{style}{word:<8}{style:#}  {check:<width$}  {node}{detail}")?;
        if let Some(advice) = advice {
            writeln!(output, "{:10}{:width$}  -> {advice}", "", "")?;
        }
    }
    Ok(())
}

fn show_json(findings: &[Finding]) -> Result<(), Failure> {
    let rows = findings.iter().map(|Finding { node, check, state, detail, advice }| {
        json!({ "node": node, "check": check, "state": state.name(), "detail": detail, "advice": advice })
    });
    let text = serde_json::to_string_pretty(&Json::Array(rows.collect()));
    Ok(writeln!(anstream::stdout(), "{}", text.map_err(|_| Failure::Strange("no JSON"))?)?)
}

fn verdict(findings: &[Finding], strict: bool) -> Result<(), Failure> {
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let (problems, warnings) = (count(State::Problem), count(State::Warning));
    match (problems, warnings) {
        (0, 0) => Ok(()),
        (0, _) if !strict => Ok(()),
        _ => Err(Failure::Unwell { problems, warnings }),
    }
}
