#!/usr/bin/env node
// An HTTP API behind keyguard's gate, with one KG.AUTH a request. README.md, "HTTP", says what is answered, and why.
//
//     npm install express redis
//     redis-cli KG.ADDORG acme shop; redis-cli KG.NEWKEY acme shop web SCOPES orders:read LIMIT 100 1m
//     PASSWORD=what-/login-takes examples/express_gate.js   (which also heeds KEYGUARD_URL, KEYGUARD_STORE and PORT)
//     curl -i -H 'X-API-Key: kg_live_...' http://127.0.0.1:8000/api/me
const { createHash, timingSafeEqual } = require('node:crypto')
const { setTimeout: after } = require('node:timers/promises')
const express = require('express')
const { createClient } = require('redis')

const { KEYGUARD_URL: url = 'redis://127.0.0.1', KEYGUARD_STORE: store = 'acme', PORT = '8000', PASSWORD } = process.env
// One connection, and no queue while it is down. It comes back by itself, more and more patiently.
const kg = createClient({ url, RESP: 3, disableOfflineQueue: true })
kg.on('error', error => console.error('keyguard: %s', error.message))
kg.connect().catch(() => {})
// The scope for a method and the word after /api. What is not listed takes a key that may do everything.
const SCOPES = { 'GET me': [], 'GET orders': ['SCOPE', 'orders:read'] }
const STATUS = {
  NOT_FOUND: 401, DISABLED: 401, EXPIRED: 401, IP_BLOCKED: 403, IP_NOT_ALLOWED: 403, ORG_SUSPENDED: 403,
  INSUFFICIENT_SCOPE: 403, RATE_LIMITED: 429, QUOTA_EXCEEDED: 429,
}

const seconds = ms => Math.ceil(ms / 1000)
const digest = text => createHash('sha256').update(text).digest()
const password = digest(PASSWORD)

async function ask(...words) {
  const tooLate = after(2000, null, { ref: false }).then(() => { throw new Error('no answer in time') })
  return Promise.race([kg.sendCommand(words), tooLate]).catch(error => {
    console.error('keyguard: %s', error.message)
    return { code: 'UNAVAILABLE' } // and so 503: nobody is let in
  })
}

function limits(answer) { // the headers in general use, and those of draft-ietf-httpapi-ratelimit-headers-11
  const [window, full, wait] = ['window', 'reset_after', 'retry_after'].map(name => seconds(answer[`${name}_ms`]))
  const headers = wait > 0 ? { 'Retry-After': wait } : {} // no wait helps if it is -1
  const { limit, remaining: left } = answer
  return limit === undefined ? headers : {
    ...headers, 'X-RateLimit-Limit': limit, 'X-RateLimit-Remaining': left, 'X-RateLimit-Reset': full,
    'RateLimit-Policy': `"default";q=${limit};w=${window}`, RateLimit: `"default";r=${left};t=${wait > 0 ? wait : full}`
  }
}

function refuse(response, answer) {
  const status = STATUS[answer.code] ?? 503
  const scope = answer.code === 'INSUFFICIENT_SCOPE' ? ', error="insufficient_scope"' : ''
  if (status === 401 || scope) response.set('WWW-Authenticate', 'Bearer realm="api"' + scope)
  const code = status === 401 ? 'NOT_FOUND' : answer.code // nobody learns that a key was good once
  response.status(status).set(limits(answer)).type('application/problem+json').send(JSON.stringify({ status, code }))
}

const app = express().disable('x-powered-by').enable('case sensitive routing') // as keyguard's rules for paths are
app.use('/api', async (request, response, next) => {
  const bearer = /^bearer (.*)$/i.exec(request.get('Authorization') ?? '')
  // Without a key it asks, too: a blocked address hears that first. Of X-Forwarded-For nothing is believed; if there is
  // a proxy of yours before this, take request.ip and tell express its address ('trust proxy').
  const key = request.get('X-API-Key') || bearer?.[1] || ''
  const scope = SCOPES[`${request.method} ${request.path.split('/')[1]}`] ?? ['SCOPE', '*']
  const about = ['IP', request.socket.remoteAddress, 'PATH', request.baseUrl + request.path, 'METHOD', request.method]
  const answer = await ask('KG.AUTH', store, key, ...about, ...scope)
  if (answer.code !== 'VALID') return refuse(response, answer)
  request.caller = answer
  response.set(limits(answer))
  next()
})
app.get('/api/me', ({ caller: { org, label, scopes } }, response) => response.json({ org, label, scopes }))
app.get('/api/orders', (request, response) => response.json({ orders: [] }))
app.post('/login', express.json(), async (request, response) => {
  const address = request.socket.remoteAddress // five attempts a minute, or none for a quarter of an hour
  const answer = await ask('KG.CLAIMIP', store, address, '5', '1m', 'PATH', '/login', 'LOCKOUT', '15m')
  if (answer.code !== 'VALID') return refuse(response, answer)
  const attempt = digest(`${request.body?.password}`)
  if (!timingSafeEqual(attempt, password)) return refuse(response, { code: 'NOT_FOUND' })
  await ask('KG.CLEARIP', store, address, 'PATH', '/login')
  response.json({ welcome: true })
})
app.listen(Number(PORT), '127.0.0.1')
