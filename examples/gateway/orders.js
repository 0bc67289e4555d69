// A service that takes orders and knows nothing of retries: `node orders.js PORT`.

const http = require("node:http");

let orders = 0;

const server = http.createServer((request, response) => {
  let body = "";
  request.on("data", (part) => (body += part));
  request.on("end", () => {
    const order = { order: ++orders, item: JSON.parse(body).item };
    response.writeHead(201, { "Content-Type": "application/json" });
    response.end(JSON.stringify(order));
  });
});

server.listen(Number(process.argv[2]), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
