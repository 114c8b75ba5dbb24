'use strict';
// All text is inserted by textContent, and all images come from the page's own
// data; an image's entry is parsed when the image is chosen.
(() => {
  const find = (id) => document.getElementById(id);
  const parse = (element) => JSON.parse(element.textContent);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  const run = parse(find('run'));
  const index = parse(find('index'));
  const entries = document.querySelectorAll('script.entry');
  const layers = Object.keys(run.layers);
  const layerButtons = new Map(
    [...document.querySelectorAll('button.node')].map(
      (button) => [button.dataset.layer, button]));
  let image = null;
  let number = -1;
  let layer = layers[layers.length - 1];
  // An image may be decoded only after the next click: the last click counts.
  const latest = new Map();

  // A group of buttons is one Tab stop; arrow keys move inside.
  const group = (element, buttons) => {
    const shown = () => buttons().filter((button) => !button.hidden);
    element.addEventListener('keydown', (event) => {
      const all = shown();
      const place = all.indexOf(document.activeElement);
      const next = {
        ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1,
        ArrowUp: place - 1, Home: 0, End: all.length - 1,
      }[event.key];
      if (place < 0 || next === undefined) return;
      event.preventDefault();
      all[Math.max(0, Math.min(next, all.length - 1))].focus();
    });
    return (chosen) => {
      const stop = shown().includes(chosen) ? chosen : shown()[0];
      for (const button of buttons()) {
        button.tabIndex = button === stop ? 0 : -1;
        button.setAttribute('aria-pressed', String(button === chosen));
      }
    };
  };

  // Cuts a sheet into one canvas a cell.
  const cells = async (target, sheet, names, labels) => {
    const image = make('img', {src: sheet.png});
    latest.set(target, image);
    await image.decode();
    if (latest.get(target) !== image) return;
    target.replaceChildren(...names.map((name, place) => {
      const canvas = make('canvas', {width: sheet.width, height: sheet.height});
      canvas.setAttribute('role', 'img');
      canvas.setAttribute('aria-label', labels[place]);
      canvas.getContext('2d').drawImage(
        image, (place % sheet.columns) * sheet.width,
        Math.floor(place / sheet.columns) * sheet.height, sheet.width,
        sheet.height, 0, 0, sheet.width, sheet.height);
      return make('figure', {}, canvas,
        make('figcaption', {textContent: name}));
    }));
  };

  // Scrolls the diagram, not the page.
  const reveal = (button) => {
    const box = find('network').getBoundingClientRect();
    const place = button.getBoundingClientRect();
    if (place.top < box.top + 40 || place.bottom > box.bottom) {
      find('network').scrollTop += place.top - box.top - box.height / 2;
    }
  };

  const showLayer = () => {
    chooseLayer(layerButtons.get(layer));
    reveal(layerButtons.get(layer));
    const shown = image.layers[layer];
    find('layer').textContent = layer ? `Maps of ${layer}` : 'Maps';
    find('layer-text').textContent = run.layers[layer] || '';
    find('maps-shown').hidden = !shown;
    if (!shown) return;
    find('maps-text').textContent = `${shown.text}.`;
    find('low').textContent = `−${shown.limit}`;
    find('high').textContent = shown.limit;
    find('maps-file').textContent =
      `Larger: ${image.folder}/maps_${layer}.png, beside this page.`;
    cells(
      find('maps'), shown,
      shown.channels.map((channel, i) => `#${channel} · ${shown.strengths[i]}`),
      shown.channels.map((channel, i) => `channel ${channel} of ${layer}, ` +
        `root mean square ${shown.strengths[i]}`));
  };

  const percent = (share) => share < 0.00005 ? '< 0.01%'
    : `${(100 * share).toFixed(2)}%`;

  const showBest = () => {
    find('best').replaceChildren(...image.best.map((predicted) => {
      const bar = make('div', {className: 'bar'});
      bar.style.width = `${100 * predicted.probability}%`;
      const suffix = predicted.isTrue ? ' (true class)' : '';
      return make('li', {className: predicted.isTrue ? 'true-class' : ''},
        make('div', {className: 'class'},
          make('span', {textContent: `${predicted.label} ${predicted.name}${suffix}`}),
          make('span', {
            className: 'share',
            textContent: percent(predicted.probability),
          })),
        make('div', {className: 'track'}, bar));
    }));
    find('no-predictions').hidden = image.best.length > 0;
    find('no-predictions').textContent = run.noPredictions;
  };

  const showCam = () => {
    const cam = image.cam;
    find('cam-panel').hidden = !cam;
    if (!cam) return;
    find('cam-image').src = image.image;
    find('cam-image').alt = 'the same image, below the heat map';
    find('heat').src = cam.png;
    find('heat').alt = `heat map: where ${run.camLayer} supports ` +
      `${cam.name}, ${cam.columns} by ${cam.rows} positions`;
    find('peak').textContent = cam.peak;
    find('cam-text').textContent = cam.peak
      ? `Where ${run.camLayer} supports ${cam.name}.`
      : `Nothing in ${run.camLayer} supports ${cam.name}: 0 everywhere.`;
  };

  const showImage = (chosen, announce = true) => {
    number = chosen;
    image = parse(entries[number]);
    chooseImage(buttons[number]);
    find('key').textContent = image.key;
    find('reason').hidden = !image.reason;
    find('reason').textContent = `It could not be read: ${image.reason}`;
    find('seen').hidden = Boolean(image.reason);
    if (!image.reason) {
      find('image').src = image.image;
      find('image').alt = `${image.key}, as cut out for the network`;
      find('true-class').textContent =
        image.trueClass ? `True class: ${image.trueClass}` : '';
      showCam();
      showBest();
    }
    showLayer();
    if (announce) find('announced').textContent = `${image.key} is shown`;
  };

  const buttons = index.map((item, place) => {
    const image = item.thumbnail
      ? make('img', {
        src: item.thumbnail, alt: '', loading: 'lazy', decoding: 'async',
      })
      : make('span', {className: 'broken', textContent: '!'});
    const text = item.reason ? `${item.key} (could not be read)` : item.key;
    const button = make('button', {type: 'button', title: text}, image,
      make('span', {className: 'name', textContent: text}));
    button.addEventListener('click', () => showImage(place));
    return button;
  });
  find('images').append(...buttons);
  const chooseImage = group(find('images'), () => buttons);
  const chooseLayer =
    group(find('network'), () => [...layerButtons.values()]);

  const filter = () => {
    const wanted = find('filter').value.toLowerCase();
    let shown = 0;
    index.forEach((item, place) => {
      const text = `${item.key} ${item.best}`.toLowerCase();
      buttons[place].hidden = !text.includes(wanted);
      shown += !buttons[place].hidden;
    });
    find('count').textContent = `${shown} of ${index.length}`;
    chooseImage(buttons[number]);
  };
  find('filter').addEventListener('input', filter);
  find('chooser').hidden = index.length < 2;

  for (const [name, button] of layerButtons) {
    button.addEventListener('click', () => {
      layer = name;
      showLayer();
      find('announced').textContent = `maps of ${layer} are shown`;
      const place = find('maps-panel').getBoundingClientRect();
      // On a narrow screen the maps are below the diagram.
      if (place.top > 0.7 * innerHeight) find('maps-panel').scrollIntoView();
    });
  }

  find('strength').addEventListener('input', (event) => {
    find('heat').style.opacity = event.target.value / 100;
  });

  const filters = run.filters;
  const numbers = [...Array(filters.count).keys()];
  cells(
    find('filters'), filters, numbers.map((place) => `#${place}`),
    numbers.map((place) => `filter ${place} of the first layer`));
  const first = index.findIndex((item) => !item.reason);
  showImage(Math.max(first, 0), false);
  filter();
})();
