module.exports = (context) => {{;
