// Which part of an axis is shown. Plots of one axis (the same `group`) are zoomed together.

const zoom = {ranges: new Map(), redraws: new Map(), waiting: new Set()};  // all by group

function onZoom(group, redraw) {
  if (!zoom.redraws.has(group)) zoom.redraws.set(group, []);
  zoom.redraws.get(group).push(redraw);
}

// null: all of it.
function zoomTo(group, range) {
  if (range) zoom.ranges.set(group, range);
  else zoom.ranges.delete(group);
  hideTip();
  if (zoom.waiting.has(group)) return;
  zoom.waiting.add(group);
  requestAnimationFrame(() => {
    zoom.waiting.delete(group);
    (zoom.redraws.get(group) || []).forEach(redraw => redraw());
  });
}

// The part of [low, high] that is shown; all where the two have nothing in common.
function shownRange(group, full) {
  const range = zoom.ranges.get(group);
  if (!range) return full;
  const low = Math.max(range[0], full[0]), high = Math.min(range[1], full[1]);
  return low < high ? [low, high] : full;
}

// `range` made `factor` times as long around `at`, then moved by `share` of its length, inside `full`. null: it is all of it.
function changedRange(range, full, isLog, {factor = 1, at = null, share = 0}) {
  const warp = isLog ? Math.log : value => value, unwarp = isLog ? Math.exp : value => value;
  const [a, b] = full.map(warp);
  let [low, high] = range.map(warp);
  const centre = at === null ? (low + high) / 2 : warp(at);
  [low, high] = [centre + (low - centre) * factor, centre + (high - centre) * factor];
  const length = Math.min(Math.max(high - low, (b - a) * 1e-6), b - a);
  low = Math.min(Math.max(low + share * length, a), b - length);
  return length >= (b - a) * 0.9999 ? null : [unwarp(low), unwarp(low + length)];
}

const zoomHint = 'Drag across a plot, or press + and \u2212 in it, to zoom; arrow keys move; 0, Escape or a double click shows all. ' +
                 'The wheel zooms while Ctrl is held or the plot has been clicked. Shift-drag chooses a height.';

// frame.shown, which each drawing sets: {group, x, full, range, isLog, box, pick(from, to), y}. pick gives the values between two places
// of the drawing; y, a scale, where heights can be chosen.
function makeZoomable(host, frame, title, redraw) {
  fill(frame, {tabindex: 0, role: 'group', 'aria-label': title + '. ' + zoomHint, 'aria-keyshortcuts': '+ - 0 ArrowLeft ArrowRight'}, []);
  frame.classList.add('zoomable');
  const change = how => {
    const {group, full, range, isLog} = frame.shown;
    zoomTo(group, changedRange(range, full, isLog, how));
  };
  const reset = () => {
    frame.height = null;
    zoomTo(frame.shown.group, null);
    redraw();
  };
  if (!host.resetZoom) {  // several maps of one figure share the buttons
    host.resetZoom = tool('Reset zoom', 'Show all of the axis again', reset);
    const out = tool('\u2212', 'Zoom out', () => change({factor: 2})), into = tool('+', 'Zoom in', () => change({factor: 0.5}));
    toolsOf(host).prepend(host.resetZoom, out, into);
  }
  frame.sayZoom = () => { host.resetZoom.hidden = !zoom.ranges.has(frame.shown.group) && !frame.height; };

  const place = event => {
    const drawing = frame.firstElementChild, bounds = drawing.getBoundingClientRect(), size = drawing.viewBox.baseVal;
    return [(event.clientX - bounds.left) * size.width / bounds.width, (event.clientY - bounds.top) * size.height / bounds.height];
  };
  const inside = ([x, y], box) => x >= box.left && x <= box.right && y >= box.top && y <= box.bottom;
  let drag = null;
  frame.addEventListener('pointerdown', event => {
    const at = place(event);
    if (event.button !== 0 || !inside(at, frame.shown.box)) return;
    drag = {at, isHeight: event.shiftKey && Boolean(frame.shown.y), mark: svg('rect', {class: 'selection'})};
  });
  const ends = (event, box) => {
    const [x, y] = place(event), k = drag.isHeight ? 1 : 0;
    const limits = drag.isHeight ? [box.top, box.bottom] : [box.left, box.right];
    const to = Math.min(Math.max(k ? y : x, limits[0]), limits[1]);
    return [Math.min(drag.at[k], to), Math.max(drag.at[k], to)];
  };
  frame.addEventListener('pointermove', event => {
    if (!drag) return;
    const {box} = frame.shown, [from, to] = ends(event, box);
    if (to - from < 4) return;
    if (!drag.mark.parentNode) {
      frame.setPointerCapture(event.pointerId);
      frame.firstElementChild.append(drag.mark);
    }
    hideTip();
    fill(drag.mark, drag.isHeight ? {x: box.left, width: box.right - box.left, y: from, height: to - from}
                                  : {x: from, width: to - from, y: box.top, height: box.bottom - box.top}, []);
  });
  frame.addEventListener('pointerup', event => {
    if (!drag) return;
    const {box, group, pick, y} = frame.shown, [from, to] = ends(event, box), {isHeight, mark} = drag;
    drag = null;
    if (!mark.parentNode) return;
    mark.remove();
    if (isHeight) {
      frame.height = [y.invert(to), y.invert(from)];
      redraw();
    } else {
      zoomTo(group, pick(from, to));
    }
  });
  frame.addEventListener('pointercancel', () => {
    if (drag) drag.mark.remove();
    drag = null;
  });
  frame.addEventListener('dblclick', reset);
  frame.addEventListener('wheel', event => {
    const at = place(event);
    if (!(event.ctrlKey || event.metaKey || document.activeElement === frame) || !inside(at, frame.shown.box)) return;
    const {x, full, range, isLog, group} = frame.shown;
    const factor = Math.exp(Math.min(Math.max(event.deltaY, -120), 120) * 0.003);
    const next = changedRange(range, full, isLog, {factor, at: x.invert(at[0])});
    if (!next && !zoom.ranges.has(group)) return;  // all is shown: the page scrolls
    event.preventDefault();
    zoomTo(group, next);
  }, {passive: false});
  const keys = {'+': {factor: 0.5}, '=': {factor: 0.5}, '-': {factor: 2}, ArrowLeft: {share: -0.2}, ArrowRight: {share: 0.2}};
  frame.addEventListener('keydown', event => {
    if (event.target !== frame || event.ctrlKey || event.metaKey || event.altKey) return;
    if (keys[event.key]) change(keys[event.key]);
    else if (event.key === '0' || event.key === 'Escape') reset();
    else return;
    event.preventDefault();
  });
}
