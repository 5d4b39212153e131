import { serve } from "@hono/node-server";
import { service } from "./app.js";

const port = Number(process.env.PORT ?? 8000);
const server = serve({ fetch: service().fetch, port }, () => console.log(`listening at ${port}`));
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.on(signal, () => server.close());
}
