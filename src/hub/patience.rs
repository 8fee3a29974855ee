//! The Hub counts requests, and says with status 429 when there may be more of them. One wait serves the whole run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use tokio::time::Instant;

use crate::bucket::error::{Cause, Failure};
use crate::progress::{Event, Progress};

/// The shortest wait that is taken for one, where the Hub names less.
const LEAST: Duration = Duration::from_secs(1);
/// Waits that end so close to each other are one.
const SAME: Duration = Duration::from_secs(2);

/// When requests may go out, for all of a run.
pub struct Patience {
    most: Duration,
    progress: Arc<dyn Progress>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    until: Option<Instant>,
    given_up: Option<Duration>,
}

impl std::fmt::Debug for Patience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patience").field("most", &self.most).finish_non_exhaustive()
    }
}

impl Patience {
    /// Waits up to `most` for one request; notes go to `progress`.
    pub fn new(most: Duration, progress: Arc<dyn Progress>) -> Self {
        Patience { most, progress, state: Mutex::default() }
    }

    /// Waits until requests may go out.
    ///
    /// # Errors
    /// [`Cause::RateLimited`] when that is too long.
    pub async fn pass(&self) -> Result<(), Failure> {
        loop {
            let until = {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(wait) = state.given_up {
                    return Err(self.too_long(wait));
                }
                state.until
            };
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => return Ok(()),
            }
        }
    }

    /// Takes note of what the Hub asked for, in answer to a request that was refused first at `since`.
    ///
    /// # Errors
    /// [`Cause::RateLimited`] when that is too long; no other request is sent then.
    pub fn asked(&self, wait: Duration, since: Instant) -> Result<(), Failure> {
        let wait = wait.max(LEAST);
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(since).saturating_add(wait).as_secs() > self.most.as_secs() {
            state.given_up = Some(wait);
            return Err(self.too_long(wait));
        }
        let until = now + wait;
        let known = state.until.filter(|known| *known > now);
        if known.is_none_or(|known| until > known) {
            state.until = Some(until);
        }
        drop(state);
        if known.is_none_or(|known| until > known + SAME) {
            self.progress.event(Event::Note(format!(
                "the Hub's limit of requests is reached: waiting {} s, as it asks",
                wait.as_secs_f64().ceil()
            )));
        }
        Ok(())
    }

    fn too_long(&self, wait: Duration) -> Failure {
        let (wait, most) = (wait.as_secs_f64().ceil(), self.most.as_secs());
        let detail =
            format!("its limit of requests is reached; it asks to wait {wait} s, and --hub-wait allows {most} s");
        Failure::new(Cause::RateLimited, detail)
    }
}

/// How long to wait, by the headers of an answer: the longest of what they name.
pub fn named_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let limits = headers.get_all("ratelimit").iter().filter_map(|value| value.to_str().ok()).filter_map(reset);
    let plain = ["ratelimit-reset", "x-ratelimit-reset-after"].into_iter().filter_map(|name| seconds(text(name)?));
    let retry = text(RETRY_AFTER.as_str()).and_then(|value| {
        seconds(value).or_else(|| {
            let then = http_date(value)?;
            // By the clock that made the date, where it is told.
            let now = text(DATE.as_str()).and_then(http_date).unwrap_or(now);
            Some(then.duration_since(now).unwrap_or_default())
        })
    });
    limits.chain(plain).chain(retry).max()
}

/// The wait in `"api";r=0;t=55, "resolvers";r=12;t=80`: of the limits that are used up, or of all.
fn reset(value: &str) -> Option<Duration> {
    let mut waits = Vec::new();
    for limit in value.split(',') {
        let of = |name: &str| {
            let parameters = limit.split(';').filter_map(|parameter| parameter.split_once('='));
            let mut named = parameters.filter(|(known, _)| known.trim().eq_ignore_ascii_case(name));
            named.next().and_then(|(_, value)| seconds(value.trim().trim_matches('"')))
        };
        if let Some(wait) = of("t") {
            waits.push((of("r").is_some_and(|left| left.is_zero()), wait));
        }
    }
    let used_up = waits.iter().filter(|(used_up, _)| *used_up).map(|(_, wait)| *wait).max();
    used_up.or_else(|| waits.iter().map(|(_, wait)| *wait).max())
}

fn seconds(text: &str) -> Option<Duration> {
    let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)?;
    // A year is as good as for ever.
    Duration::try_from_secs_f64(number.min(3.2e7)).ok()
}

fn http_date(text: &str) -> Option<SystemTime> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text.trim()).ok()?;
    SystemTime::try_from(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        pairs.iter().for_each(|(name, value)| {
            headers.append(*name, value.parse().unwrap());
        });
        headers
    }

    #[test]
    fn the_wait_is_what_the_headers_name() {
        let now = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (pairs, wait) in [
            (&[("ratelimit", "\"api\";r=0;t=55")][..], Some(55)),
            (&[("ratelimit", "\"api\";r=0;t=55, \"resolvers\";r=3;t=200")], Some(55)),
            (
                &[("ratelimit", "\"api\"; t=7 ; r=0"), ("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300")],
                Some(7),
            ),
            (&[("ratelimit", "nonsense")], None),
            (&[("retry-after", "12")], Some(12)),
            (&[("retry-after", "12"), ("ratelimit", "\"api\";r=0;t=3")], Some(12)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")], Some(60)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")], Some(0)),
            (&[("retry-after", "Sun, 06 Nov 2094 08:50:37 GMT"), ("date", "Sun, 06 Nov 2094 08:50:07 GMT")], Some(30)),
            (&[("retry-after", "-5")], None),
            (&[("retry-after", "soon")], None),
            (&[], None),
        ] {
            assert_eq!(named_wait(&headers(pairs), now).map(|wait| wait.as_secs()), wait, "{pairs:?}");
        }
        let huge = named_wait(&headers(&[("retry-after", "99999999999999999999")]), now).unwrap();
        assert!(huge > Duration::from_secs(3600 * 24));
    }

    #[test]
    fn what_is_too_long_ends_every_request() {
        let patience = Patience::new(Duration::from_secs(10), Arc::new(Silent));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            assert!(patience.pass().await.is_ok());
            assert_eq!(patience.asked(Duration::from_secs(11), Instant::now()).unwrap_err().cause, Cause::RateLimited);
            let failure = patience.pass().await.unwrap_err();
            assert!(failure.detail.contains("11 s") && failure.detail.contains("--hub-wait"), "{}", failure.detail);
        });
    }
}
