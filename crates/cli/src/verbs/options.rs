//! Options that several verbs have.

use std::str::FromStr;

use clap::{ArgAction, Args};

use crate::failure::Failure;
use crate::output::of;
use crate::reply::Json;

use super::request::Request;
use super::{Console, Kind, confirm};

/// `count window`, or `count window unit`, as LIMIT, QUOTA and SHARED take it.
#[derive(Debug, Clone)]
pub struct Allowance(Vec<String>);

impl FromStr for Allowance {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            [count, window] => Ok(Self(owned(&[count, window]))),
            [count, window, unit] => Ok(Self(owned(&[count, window, "UNIT", unit]))),
            _ => Err("two words, as in \"100 1m\", or three, as in \"90000 1m tokens\""),
        }
    }
}

impl AsRef<[String]> for Allowance {
    fn as_ref(&self) -> &[String] {
        &self.0
    }
}

/// `n`, or `n unit`, as COST takes it.
#[derive(Debug, Clone)]
pub struct Cost(Vec<String>);

impl FromStr for Cost {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            [count] => Ok(Self(owned(&[count]))),
            [count, unit] => Ok(Self(owned(&[count, "UNIT", unit]))),
            _ => Err("one word, as in 1, or two, as in \"1200 tokens\""),
        }
    }
}

impl AsRef<[String]> for Cost {
    fn as_ref(&self) -> &[String] {
        &self.0
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Limits of a key or an organization.
#[derive(Debug, Args)]
pub struct Limits {
    /// At most so many in any window, as "100 1m" or "90000 1m tokens"; may be repeated
    #[arg(long, value_name = "COUNT WINDOW [UNIT]")]
    limit: Vec<Allowance>,
}

impl Limits {
    /// LIMIT for each.
    pub fn add(&self, request: Request) -> Request {
        request.each_of("LIMIT", &self.limit)
    }
}

/// Quotas of a key or an organization.
#[derive(Debug, Args)]
pub struct Quotas {
    /// At most so many in a calendar day, month or in all, as "1000 day" or "5000000 total tokens"; may be repeated
    #[arg(long, value_name = "COUNT PERIOD [UNIT]")]
    quota: Vec<Allowance>,
}

impl Quotas {
    /// QUOTA for each.
    pub fn add(&self, request: Request) -> Request {
        request.each_of("QUOTA", &self.quota)
    }
}

/// When a key ends.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Expiry {
    /// The time at which it ends: unix seconds or RFC 3339; 0 is never
    #[arg(long, value_name = "TIME")]
    expire_at: Option<String>,

    /// How long it lasts from now on: 30s, 5m, 2h, 7d
    #[arg(long, value_name = "DURATION")]
    expire_in: Option<String>,
}

impl Expiry {
    /// EXPIREAT or EXPIREIN.
    pub fn add(&self, request: Request) -> Request {
        request.option("EXPIREAT", self.expire_at.as_deref()).option("EXPIREIN", self.expire_in.as_deref())
    }
}

/// What a vault key is known by.
#[derive(Debug, Args)]
pub struct Origin {
    /// Where it is from
    #[arg(long)]
    source: Option<String>,

    /// The account at the vendor that it was made with
    #[arg(long)]
    login: Option<String>,

    /// The batch that it came in
    #[arg(long)]
    batch: Option<String>,
}

impl Origin {
    /// SOURCE, LOGIN, BATCH.
    pub fn add(&self, request: Request) -> Request {
        request
            .option("SOURCE", self.source.as_deref())
            .option("LOGIN", self.login.as_deref())
            .option("BATCH", self.batch.as_deref())
    }
}

/// What of records must hold.
#[derive(Debug, Args)]
pub struct State {
    /// Those that are active, or that are not
    #[arg(long, value_name = "yes|no")]
    active: Option<String>,

    /// Those that have expired, or that have not
    #[arg(long, value_name = "yes|no")]
    expired: Option<String>,
}

impl State {
    /// ACTIVE and EXPIRED.
    pub fn add(&self, request: Request) -> Request {
        request.option("ACTIVE", self.active.as_deref()).option("EXPIRED", self.expired.as_deref())
    }
}

/// Which keys of one kind.
pub trait Filters: Args {
    /// The kind.
    const KIND: Kind;

    /// What must hold beside the kind.
    fn add(&self, request: Request) -> Request;

    /// TYPE, and what must hold.
    fn add_all(&self, request: Request) -> Request {
        self.add(request.word("TYPE").word(Self::KIND.as_str()))
    }
}

/// How a list is ordered, and how long it gets.
#[derive(Debug, Args)]
pub struct Listing {
    /// Sort by a field, as `created_at` or "created_at desc"; may be repeated. Without it, by id
    #[arg(long, value_name = "FIELD [desc]")]
    sort: Vec<String>,

    #[command(flatten)]
    max: Max,
}

/// How long a list gets.
#[derive(Debug, Args)]
pub struct Max {
    /// Stop after so many; without it all are shown
    #[arg(long, value_name = "N")]
    pub max: Option<usize>,
}

impl Listing {
    /// All records that filters fit, or the first so many, in the order that is asked for.
    ///
    /// # Errors
    /// What the module refuses, or why it does not answer.
    pub async fn rows(&self, console: &Console, filters: &impl Filters) -> Result<Vec<Json>, Failure> {
        let request = || filters.add_all(console.request("KG.LISTKEYS"));
        if self.sort.is_empty() {
            return console.pages_by_id(request, self.max.max).await;
        }
        let fields = || self.sort.iter().map(|field| field.split_whitespace());
        let sorted = || fields().fold(request(), |request, words| request.word("SORTBY").words(words));
        console.pages_by_offset(sorted, self.max.max).await
    }
}

/// Which records are to be deleted.
#[derive(Debug, Args)]
pub struct Chosen<F: Filters> {
    /// Their ids
    #[arg(value_name = "ID", required_unless_present_any = ["matching", "all"])]
    pub ids: Vec<String>,

    /// All that the filters fit, instead of ids
    #[arg(long = "match", id = "matching", conflicts_with = "ids", action = ArgAction::SetTrue)]
    pub matching: bool,

    /// All there are, instead of ids
    #[arg(long, conflicts_with_all = ["ids", "matching"])]
    pub all: bool,

    /// Do not ask whether all that --match or --all names is to go
    #[arg(long)]
    pub yes: bool,

    /// What must hold.
    #[command(flatten)]
    pub filters: F,
}

impl<F: Filters> Chosen<F> {
    /// Deletes them, as often as it takes; says how many there were, also if it fails half way.
    ///
    /// # Errors
    /// What the module refuses, why it does not answer, or that nobody wants it.
    pub async fn delete(&self, console: &Console) -> Result<(), Failure> {
        let is_filtered = self.filters.add(Request::new("KG.DELKEY")).command().args_iter().len() > 1;
        if is_filtered && !self.matching {
            return Err(Failure::Usage("filters go with --match, and with neither ids nor --all".to_owned()));
        }
        if self.matching && !is_filtered {
            return Err(Failure::Usage("--match needs a filter; --all is all there are".to_owned()));
        }
        if self.ids.is_empty() && !self.yes {
            confirm::expect_somebody()?;
            let count = console.count_keys(&self.filters).await?;
            if count == 0 {
                return console.out.value(&count.into());
            }
            let some = if count == 1 { "" } else { "s" };
            confirm::ask(&format!("Delete {count} {}{some} of the store {}?", F::KIND.name(), console.store))?;
        }
        let mut deleted = 0;
        let done = async {
            if !self.ids.is_empty() {
                console.expect_type(&self.ids, F::KIND).await?;
                return console.delete_keys(&self.ids, &mut deleted).await;
            }
            let which = if self.matching { "MATCH" } else { "ALL" };
            let request = self.filters.add_all(console.request("KG.DELKEY").word(which));
            match console.until_none(request, &mut deleted).await {
                // A call looks only at so many records; if none of these matches, the others are found page by page.
                Err(failure) if failure.code() == Some("TOOMANY") => {
                    let found = console.list_keys(&self.filters).await?;
                    let ids: Vec<String> = found.iter().map(|record| of(record, "id").to_string()).collect();
                    console.delete_keys(&ids, &mut deleted).await
                }
                done => done,
            }
        }
        .await;
        if done.is_err() && deleted > 0 {
            console.out.note(&format!("{deleted} were deleted before this:"));
        }
        done.and_then(|()| console.out.value(&deleted.into()))
    }
}
