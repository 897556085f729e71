#!/usr/bin/env python3
"""An HTTP API behind keyguard's gate, with one KG.AUTH a request. README.md, "HTTP", says what is answered, and why.
    pip install fastapi 'redis[hiredis]' 'uvicorn[standard]'
    redis-cli KG.ADDORG acme shop; redis-cli KG.NEWKEY acme shop web SCOPES orders:read LIMIT 100 1m
    PASSWORD=what-/login-takes examples/fastapi_gate.py   (which also heeds KEYGUARD_URL, KEYGUARD_STORE and PORT)
    curl -i -H 'X-API-Key: kg_live_...' http://127.0.0.1:8000/api/me"""
import asyncio, hmac, logging, os
import redis.asyncio as redis, uvicorn
from fastapi import Body, FastAPI, Request, responses
env, store, password = os.environ.get, os.environ.get("KEYGUARD_STORE", "acme"), os.environ["PASSWORD"].encode()
# Nothing is asked twice: a KG.AUTH whose answer was lost may have been charged. ask() bounds the time.
kg = redis.Redis.from_url(env("KEYGUARD_URL", "redis://127.0.0.1"), protocol=3, decode_responses=True, retry=None,
                          socket_timeout=None)
turns = asyncio.Semaphore(20)  # connections
# The scope for a method and the word after /api. What is not listed takes a key that may do everything.
SCOPES = {("GET", "me"): [], ("GET", "orders"): ["SCOPE", "orders:read"]}
STATUS = {"NOT_FOUND": 401, "DISABLED": 401, "EXPIRED": 401, "IP_BLOCKED": 403, "IP_NOT_ALLOWED": 403,
          "ORG_SUSPENDED": 403, "INSUFFICIENT_SCOPE": 403, "RATE_LIMITED": 429, "QUOTA_EXCEEDED": 429}

async def ask(*words):
    try:
        async with asyncio.timeout(2), turns:
            return await kg.execute_command(*words)
    except (redis.RedisError, TimeoutError) as error:
        logging.error("no answer from keyguard: %s", error)
        return {"code": "UNAVAILABLE"}  # and so 503: nobody is let in

def limits(answer):  # the headers in general use, and those of draft-ietf-httpapi-ratelimit-headers-11
    seconds = {name: -(-value // 1000) for name, value in answer.items() if name.endswith("_ms") and value > 0}
    wait, full = seconds.get("retry_after_ms"), seconds.get("reset_after_ms", 0)  # -1: no wait helps
    headers = {"Retry-After": str(wait)} if wait else {}
    if "limit" in answer:
        limit, left, window = str(answer["limit"]), str(answer["remaining"]), seconds["window_ms"]
        policy, now = f'"default";q={limit};w={window}', f'"default";r={left};t={wait or full}'
        headers |= {"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": left, "X-RateLimit-Reset": str(full),
                    "RateLimit-Policy": policy, "RateLimit": now}
    return headers

def refusal(answer):
    status, headers = STATUS.get(answer["code"], 503), limits(answer)
    if status == 401 or answer["code"] == "INSUFFICIENT_SCOPE":
        headers["WWW-Authenticate"] = 'Bearer realm="api"' + ', error="insufficient_scope"' * (status == 403)
    body = {"status": status, "code": "NOT_FOUND" if status == 401 else answer["code"]}  # no word of what was good once
    return responses.JSONResponse(body, status, headers, "application/problem+json")

def gate(app):  # middleware of ASGI itself, which costs less than BaseHTTPMiddleware
    async def guarded(asgi, receive, send):
        path, method = asgi.get("path", ""), asgi.get("method", "GET")  # a websocket has no method
        if path != "/api" and not path.startswith("/api/"):
            return await app(asgi, receive, send)
        headers, scope = dict(asgi["headers"]), SCOPES.get((method, *path.split("/")[2:3]), ["SCOPE", "*"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        key = headers.get(b"x-api-key") or (token if scheme.lower() == b"bearer" else b"")
        # No key is asked about, too: a blocked address hears that first.
        told_path = path.replace("?", "%3F")  # which was decoded: no query begins there
        answer = await ask("KG.AUTH", store, key, "IP", asgi["client"][0], "PATH", told_path, "METHOD", method, *scope)
        if answer["code"] != "VALID":
            return await refusal(answer)(asgi, receive, send)
        told = [(name.lower().encode(), value.encode()) for name, value in limits(answer).items()]
        await app({**asgi, "caller": answer}, receive, lambda message: send(
            {**message, "headers": [*message["headers"], *told]} if "status" in message else message))
    return guarded

app = FastAPI()
app.add_middleware(gate)
@app.get("/api/me")
async def me(request: Request):
    return {name: request.scope["caller"][name] for name in ("org", "label", "scopes")}
@app.get("/api/orders")
async def orders():
    return {"orders": []}
@app.post("/login")
async def login(request: Request, attempt: str = Body(embed=True, alias="password")):
    at = request.client.host, "PATH", "/login"  # five attempts a minute, or none for a quarter of an hour
    answer = await ask("KG.CLAIMIP", store, at[0], 5, "1m", *at[1:], "LOCKOUT", "15m")
    if answer["code"] == "VALID" and hmac.compare_digest(attempt.encode(), password):
        await ask("KG.CLEARIP", store, *at)
        return {"welcome": True}
    return refusal({"code": "NOT_FOUND"} if answer["code"] == "VALID" else answer)
# X-Forwarded-For says what the caller likes: believe it of a proxy of yours alone (forwarded_allow_ips).
uvicorn.run(app, port=int(env("PORT", "8000")), proxy_headers=False, access_log=False)
