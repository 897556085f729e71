#!/usr/bin/env python3
"""A worker of an LLM gateway: answers prompts with whichever of the vendor's keys has room. Run as many as you like.

    pip install redis
    redis-cli KG.ADDKEY llm openai sk-... LIMIT 60 1m LIMIT 90000 1m UNIT tokens        (for each key that you have)
    examples/llm_gateway.py "Why is the sky blue?" ...                 (or one prompt a line on standard input)

The environment may name REDIS_URL, VENDOR_URL (of anything with OpenAI's chat completions), VENDOR_MODEL, WAIT, PATIENCE."""
import http.client, json, os, sys, time, urllib.error, urllib.request
import redis

env = os.environ.get
VENDOR, MODEL = env("VENDOR_URL", "https://api.openai.com/v1"), env("VENDOR_MODEL", "gpt-4o-mini")
WAIT, PATIENCE = env("WAIT", "30s"), float(env("PATIENCE", "600"))  # for a key at a time; seconds for a prompt in all
ANSWER = 500  # the most tokens of an answer
# A call that waits for its turn is answered late, and not lost: the socket's patience must exceed WAIT.
kg = redis.Redis.from_url(env("REDIS_URL", "redis://127.0.0.1"), protocol=3, decode_responses=True, socket_timeout=45)

class GaveUp(Exception): pass

def call_vendor(key, prompt):
    """The status, the answer, and the tokens used or Retry-After; status 0 if there was no answer that makes sense."""
    body = {"model": MODEL, "max_tokens": ANSWER, "messages": [{"role": "user", "content": prompt}]}
    headers = {"Authorization": f"Bearer {key['secret']}", "Content-Type": "application/json",
               "X-Client-Request-Id": f"{key['id']}-{key['claimed_at_ms']}"}  # finds the claim in their logs
    try:
        request = urllib.request.Request(f"{VENDOR}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            reply = json.load(response)
        return 200, reply["choices"][0]["message"]["content"], int(reply["usage"]["total_tokens"])
    except urllib.error.HTTPError as error:
        return error.code, None, error.headers.get("Retry-After", "")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return 0, None, None  # never shown: the text of such an error may hold the secret

def report(key, tokens, *feedback):
    """Puts the estimate right, and tells all the other workers what the vendor said to this key, in one round trip."""
    at = "AT", key["claimed_at_ms"]
    with kg.pipeline(transaction=False) as both:
        both.execute_command("KG.SETTLE", "llm", key["id"], *at, "COST", tokens, "UNIT", "tokens")
        both.execute_command("KG.FEEDBACK", "llm", key["id"], *feedback, *at)
        for reply in both.execute(raise_on_error=False):  # the key may be gone; the answer is there all the same
            if isinstance(reply, Exception):
                print(f"key {key['id']}: {reply}", file=sys.stderr)

def ask(prompt):
    estimate = len(prompt) // 4 + ANSWER  # about four characters a token
    deadline, pause = time.monotonic() + PATIENCE, 0.5
    while time.monotonic() < deadline:
        costs = "COST", 1, "COST", estimate, "UNIT", "tokens"
        key = kg.execute_command("KG.ACQUIRE", "llm", "openai", *costs, "BLOCK", WAIT)
        if key["code"] != "ACQUIRED":
            if key["retry_after_ms"] < 0:  # no key is in use (NONE_USABLE), or none ever allows so much (RATE_LIMITED)
                raise GaveUp(f"no key: {key['code']}")
            continue  # there will be one: back into the line
        status, answer, detail = call_vendor(key, prompt)
        if status == 200:
            report(key, detail, "OK")
            return answer
        if status == 429:  # without a Retry-After that is a number, keyguard doubles the pause from one second on
            said = [min(int(detail), 86400)] if detail.isdecimal() and int(detail) else []
            report(key, 0, "THROTTLED", *said)
        elif status in (401, 403):
            report(key, 0, "REJECTED", "REASON", f"the vendor answered {status}")
        elif 400 <= status < 500:  # it is the prompt, not the key
            report(key, 0, "OK")
            raise GaveUp(f"the vendor answered {status}")
        else:  # down, or cut off: whether the call counted nobody knows, so its claim stands
            time.sleep(pause)
            pause = min(2 * pause, 30)
    raise GaveUp("no answer in time")

failed = False
for prompt in sys.argv[1:] or (line.strip() for line in sys.stdin):
    try:
        print(ask(prompt), flush=True)
    except GaveUp as why:
        failed = True
        print(f"{prompt!r}: {why}", file=sys.stderr)
sys.exit(failed)
