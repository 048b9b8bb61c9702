// Puts the page together.

function themeButton() {
  const isDark = () => document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === 'dark' : window.matchMedia('(prefers-color-scheme: dark)').matches;
  const button = el('button', {type: 'button', id: 'theme'});
  const say = () => { button.textContent = isDark() ? 'Light' : 'Dark'; };
  button.addEventListener('click', () => {
    document.documentElement.dataset.theme = isDark() ? 'light' : 'dark';
    say();
  });
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', say);
  say();
  return button;
}

function navigation(parts) {
  const links = parts.filter(part => part.tagName === 'SECTION')
                     .map(part => el('a', {href: '#' + part.id}, capital(part.id)));
  return el('nav', {'aria-label': 'Sections'}, links, themeButton());
}

(() => {
  const content = JSON.parse(document.getElementById('data').textContent);
  const page = document.getElementById('page');
  // 'theme' in the address's fragment fixes it, for print-outs and screenshots.
  const wanted = /theme=(light|dark)/.exec(location.hash);
  if (wanted) document.documentElement.dataset.theme = wanted[1];
  document.body.append(tip);
  const parts = (content.kind === 'sweep' ? sweepPage(page, content.sweep) : runsPage(page, content)).filter(Boolean);
  page.append(navigation(parts), ...parts,
              el('footer', {}, 'Made by lamina report ' + content.program + ' on ' + content.made_at +
                 '. This file asks the network for nothing.'));
  drawWaiting();
  view.redraws.forEach(redraw => redraw());
  document.body.dataset.ready = 'true';
})();
