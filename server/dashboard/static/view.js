// Preact, its hooks and htm, which index.html loads as plain scripts, as names to import.

const { h, render } = globalThis.preact;
export const { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } = globalThis.preactHooks;
export const html = globalThis.htm.bind(h);
export { render };
