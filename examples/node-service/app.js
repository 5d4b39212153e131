import { Hono } from "hono";
import { nanoid } from "nanoid";

/** A service that keeps notes until it ends. */
export function service() {
  const notes = new Map();
  const app = new Hono();

  app.get("/", (c) => c.text(`Hello from a Mayfly build, Node ${process.versions.node}.\n`));
  app.get("/healthz", (c) => c.json({ status: "ok" }));
  app.get("/notes/:id", (c) => {
    const note = notes.get(c.req.param("id"));
    return note === undefined ? c.json({ error: "no such note" }, 404) : c.json(note);
  });
  app.post("/notes", async (c) => {
    const note = { id: nanoid(), text: await c.req.text() };
    notes.set(note.id, note);
    return c.json(note, 201);
  });
  return app;
}
