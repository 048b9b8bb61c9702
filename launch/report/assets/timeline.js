// The pipeline's step, as it ran and as simulated: a row per rank, a box per action, one time axis for both.

const actionNames = {F: 'forward', B: 'backward', Bi: 'backward (inputs)', W: 'backward (weights)'};

function drawActions(root, timeline, ranks, x, top, rowHeight) {
  for (let rank = 0; rank < ranks; ++rank) {
    const y = top + rank * rowHeight;
    root.append(svg('rect', {class: 'lane', x: x(0), y: y + 1, width: x(x.domain[1]) - x(0), height: rowHeight - 3}),
                svg('text', {class: 'tick', x: x(0) - 7, y: y + rowHeight / 2 + 4, 'text-anchor': 'end'}, 'rank ' + rank));
  }
  for (const [rank, chunk, microbatch, kind, start, end] of timeline.actions) {
    const left = x(start), width = Math.max(x(end) - left, 0.4), y = top + rank * rowHeight + 1;
    const box = svg('rect', {class: 'action ' + kind, x: left.toFixed(2), y, width: width.toFixed(2), height: rowHeight - 3});
    const lines = [actionNames[kind] + ', chunk ' + chunk + ', micro-batch ' + microbatch,
                   'rank ' + rank + ': ' + seconds(start) + ' to ' + seconds(end) + ' (' + seconds(end - start) + ')'];
    box.addEventListener('pointermove', event => showTip(event, lines));
    box.addEventListener('pointerleave', hideTip);
    root.append(box);
    const label = width > 26 ? kind.charAt(0) + microbatch : String(microbatch);
    if (width > label.length * 7 + 3 && rowHeight >= 14)
      root.append(svg('text', {class: 'action-label', x: (left + width / 2).toFixed(2), y: y + rowHeight / 2 + 2.5, 'text-anchor': 'middle'}, label));
  }
}

function drawTimeline(trace, width) {
  const ranks = trace.shown_ranks, rowHeight = ranks > 16 ? 15 : 24, left = 54;
  const parts = [['As it ran', trace.real], ['Simulated', trace.simulated]];
  const longest = Math.max(...parts.map(part => part[1].makespan)) || 1;
  const x = scale([0, longest], [left, width - 16], false, Math.max(2, width / 110));
  const block = 34 + ranks * rowHeight, height = 2 * block + 40;
  const root = svg('svg', {viewBox: '0 0 ' + width + ' ' + height, width, height, role: 'img', 'aria-label': 'Pipeline timeline of step ' + trace.step});
  parts.forEach(([name, timeline], i) => {
    const top = i * block;
    const empty = timeline.actions.length === 0 ? ', no actions in the trace' : '';
    root.append(svg('text', {class: 'part', x: 0, y: top + 15}, name + ': ' + seconds(timeline.makespan) + ', bubble ' + percent(timeline.bubble) + empty));
    drawActions(root, timeline, ranks, x, top + 22, rowHeight);
  });
  const bottom = 2 * block - 6;
  for (const tick of x.ticks)
    root.append(svg('line', {class: 'grid', x1: x(tick), x2: x(tick), y1: 20, y2: bottom}),
                svg('text', {class: 'tick', x: x(tick), y: bottom + 15, 'text-anchor': 'middle'}, tick === 0 ? '0' : seconds(tick)));
  root.append(svg('text', {class: 'label', x: width - 16, y: bottom + 33, 'text-anchor': 'end'}, 'time since the step\u2019s first action'));
  return root;
}

function timelineTable(trace) {
  const rows = [['As it ran', trace.real], ['Simulated', trace.simulated]].flatMap(([name, timeline]) =>
    timeline.actions.map(([rank, chunk, microbatch, kind, start, end]) => [name, rank, actionNames[kind], chunk, microbatch, 1e3 * start, 1e3 * end]));
  const milliseconds = value => value.toFixed(3);
  return table([{title: 'Timeline'}, {title: 'Rank'}, {title: 'Action'}, {title: 'Chunk'}, {title: 'Micro-batch'},
                {title: 'Start [ms]', format: milliseconds}, {title: 'End [ms]', format: milliseconds}], rows);
}

function timelineFigure(trace, runName) {
  const figureElement = figure((runName ? runName + ', step ' : 'Step ') + whole(trace.step),
                               trace.schedule + ', ' + trace.pipeline + ' pipeline ranks' + (trace.data > 1 ? ' \u00d7 ' + trace.data + ' data-parallel' : '') +
                               (trace.shown_ranks < trace.ranks ? '; the first ' + trace.shown_ranks + ' of ' + trace.ranks + ' ranks' : ''));
  figureElement.classList.add('wide');
  const kinds = Object.keys(actionNames).filter(kind => [trace.real, trace.simulated].some(timeline => timeline.actions.some(action => action[3] === kind)));
  figureElement.append(el('ul', {class: 'legend'}, kinds.map(kind => el('li', {}, el('span', {class: 'key ' + kind}, kind.charAt(0)), el('span', {}, actionNames[kind])))));
  const frame = el('div', {class: 'plot'});
  figureElement.append(frame);
  responsive(frame, width => drawTimeline(trace, width));
  figureElement.append(tableBehind('Table of the actions', () => timelineTable(trace)));
  return figureElement;
}
