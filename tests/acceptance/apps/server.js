// A small Node server on handed-over sockets: descriptor 3 is the public one, 4 the slot's own.
"use strict";

const http = require("node:http");

const version = process.env.ATLAS_VERSION;

function answer(request, response) {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const own = `${request.headers["x-request-id"] ?? "-"} ${version}`;
    response.setHeader("X-Atlas-Version", version);
    response.end(request.method === "POST" ? Buffer.concat(pieces) : own);
  });
}

const handed = Number(process.env.LISTEN_FDS ?? 0);
if (handed === 0 || Number(process.env.LISTEN_PID) !== process.pid) {
  console.error("no sockets were handed over");
  process.exit(2);
}
const servers = [];
for (let fd = 3; fd < 3 + handed; fd += 1) {
  servers.push(http.createServer(answer).listen({ fd }));
}
process.on("SIGTERM", () => servers.forEach((server) => server.close()));
